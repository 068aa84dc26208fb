//! Creating, changing and deleting applications.

use std::sync::Arc;

use super::{Apps, Error, release_id};
use crate::{
    model::{App, AppChange, AppName, Namespace, Release, Restart},
    store::{self, Key},
};

/// The most instances that one application may have.
const MAX_INSTANCES: u32 = 100;

/// What an application is created with.
#[derive(Debug, Clone)]
pub struct NewApp {
    pub namespace: Namespace,
    pub name: AppName,
    pub username: String,
    pub config: AppChange,
}

impl Apps {
    /// Could an application be so? Before anything is done for it.
    pub async fn can_be(&self, namespace: &Namespace, name: &AppName, change: &AppChange) -> Result<(), Error> {
        let mut app = match self.get(namespace, name).await {
            Err(Error::NoSuchApp { .. }) => App::new(namespace.clone(), name.clone(), String::new()),
            app => app?,
        };
        change.apply(&mut app);
        self.check(&app).await
    }

    pub async fn create(&self, new: NewApp) -> Result<App, Error> {
        self.namespace(&new.namespace).await?;
        let mut app = App::new(new.namespace, new.name, new.username);
        new.config.apply(&mut app);
        self.check(&app).await?;
        match self.objects.create(&app).await {
            // Its routes are asked for from now on, and lead to a page that says why nothing answers.
            Ok(_) => self.refresh().await.map(|()| app),
            Err(store::Error::Conflict(_)) => Err(Error::AppExists { namespace: app.namespace, name: app.name }),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes an application. Scale and routes take effect in place. Where the application runs and its environment
    /// changed, [`Restart::Now`] makes a new release and waits until it serves.
    pub async fn update(
        self: &Arc<Self>,
        namespace: &Namespace,
        name: &AppName,
        change: AppChange,
    ) -> Result<App, Error> {
        let (apps, namespace, name) = (Arc::clone(self), namespace.clone(), name.clone());
        self.tasks.spawn(async move { apps.change(&namespace, &name, change).await }).await?
    }

    /// Stops and forgets an application. What it leaves in registry and blob store is collected later.
    pub async fn delete(self: &Arc<Self>, namespace: &Namespace, name: &AppName) -> Result<(), Error> {
        let (apps, namespace, name) = (Arc::clone(self), namespace.clone(), name.clone());
        self.tasks.spawn(async move { apps.remove(&namespace, &name).await }).await?
    }

    async fn change(&self, namespace: &Namespace, name: &AppName, change: AppChange) -> Result<App, Error> {
        let _turn = self.turn(namespace, name).await;
        let before = self.get(namespace, name).await?;
        let mut after = before.clone();
        change.apply(&mut after);
        self.check(&after).await?;
        let app = self.objects.modify::<App>(&key_of(&before), |app| change.apply(app)).await?.value;
        self.rescale(&app).await?;
        self.refresh().await?;
        if app.environment != before.environment && change.restart == Restart::Now && app.release.is_some() {
            self.redeploy(&app).await?;
            return self.get(namespace, name).await;
        }
        Ok(app)
    }

    async fn remove(&self, namespace: &Namespace, name: &AppName) -> Result<(), Error> {
        let _turn = self.turn(namespace, name).await;
        let app = self.get(namespace, name).await?;
        // First the application itself: whatever happens after this, the reconciler ends the rest.
        self.objects.delete(&key_of(&app)).await?;
        self.refresh().await?;
        for id in self.runtime.workloads().await? {
            if id.namespace == *namespace && id.app == *name {
                self.runtime.remove(&id, self.settings.grace).await?;
            }
        }
        self.forget_releases(namespace, name).await
    }

    /// Deletes the releases of an application that is gone.
    pub(super) async fn forget_releases(&self, namespace: &Namespace, name: &AppName) -> Result<(), Error> {
        for release in self.objects.list::<Release>(Some(namespace.as_str())).await? {
            if release.value.id.app == *name {
                self.forget(&release.value.id).await?;
            }
        }
        Ok(())
    }

    /// Makes the serving release have as many instances as it should. Instances that go are drained first.
    pub(super) async fn rescale(&self, app: &App) -> Result<(), Error> {
        let Some(number) = app.release else { return Ok(()) };
        let Some(release) = self.release(&release_id(app, number)).await? else { return Ok(()) };
        let leaving = self.surplus_backends(app, &release.id);
        self.refresh().await?;
        self.drain(leaving).await;
        self.runtime.apply(&self.workload(&release, app.instances)).await?;
        Ok(())
    }

    /// What no single name can say: routes that are taken, and numbers out of range.
    pub(super) async fn check(&self, app: &App) -> Result<(), Error> {
        if app.instances > MAX_INSTANCES {
            return Err(Error::TooManyInstances { instances: app.instances, most: MAX_INSTANCES });
        }
        let routes = self.routes(app);
        let domain = &self.settings.system_domain;
        let own = [format!("epinio.{domain}"), domain.clone(), "localhost".to_owned()];
        for route in &routes {
            if own.iter().any(|own| own == route.host()) || route.host().parse::<std::net::IpAddr>().is_ok() {
                return Err(Error::RouteReserved(route.clone()));
            }
        }
        for other in self.objects.list::<App>(None).await? {
            let other = other.value;
            if (&other.namespace, &other.name) == (&app.namespace, &app.name) {
                continue;
            }
            let theirs = self.routes(&other);
            if let Some(route) = routes.iter().find(|route| theirs.contains(route)) {
                let owner = format!("{}/{}", other.namespace, other.name);
                return Err(Error::RouteTaken { route: route.clone(), owner });
            }
        }
        Ok(())
    }
}

fn key_of(app: &App) -> Key {
    Key::app(&app.namespace, &app.name)
}
