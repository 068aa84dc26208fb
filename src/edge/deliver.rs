//! A request and the application that it is for: what its route allows, and what is counted of it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Body;
use http::{Request, Response, StatusCode};

use super::{
    Client, Compression, Edge, body,
    compress::Wish,
    ending::Ending,
    h2c,
    pages::{self, Accept},
    upstream::Arriving,
};
use crate::apps::{InFlight, Traffic};

/// A page in place of an answer, and the instance that has none.
pub(super) struct Failed {
    pub page: Response<Body>,
    pub backend: InFlight,
}

impl Edge {
    pub(super) async fn deliver(
        &self,
        request: Request<Body>,
        backend: InFlight,
        host: &str,
        path: &str,
        client: Client,
    ) -> Response<Body> {
        let (begun, accept) = (Instant::now(), Accept::of(&request));
        let route = self.settings.of_host(host);
        if let Some(most) = route.requests_in_flight
            && self.routes.in_flight(host, path) > most
        {
            return counted(backend.traffic(), begun, pages::too_busy(&accept, most));
        }
        let limits = body::Limits {
            most_bytes: route.max_body_bytes,
            // Both sides of a call may be silent as long as they like.
            silence: Some(self.settings.patience.body).filter(|_| accept != Accept::Grpc),
        };
        let wish = route.compression.filter(|chosen| *chosen == Compression::On).and_then(|_| Wish::of(&request));
        let (request, verdict) = match limits.check(request, &accept, Some(backend.traffic())) {
            Ok(checked) => checked,
            Err(page) => return counted(backend.traffic(), begun, *page),
        };
        let another = |tried: &[SocketAddr]| self.routes.another(host, path, tried);
        let traffic = route.response.map(|most| (most, Arc::clone(backend.traffic())));
        let forwarded = self.proxy.forward(request, backend, another, client, begun);
        let answer = match traffic {
            None => forwarded.await,
            Some((most, traffic)) => match tokio::time::timeout(most, forwarded).await {
                Ok(answer) => answer,
                Err(_) => return counted(&traffic, begun, pages::too_late(&accept, most)),
            },
        };
        match answer {
            Ok(answer) => {
                // Who answers before it has read everything may be as fast as the limit is.
                let answer = limits.answer(&verdict, answer, &accept);
                match wish {
                    Some(wish) => wish.apply(answer),
                    None => answer,
                }
            }
            Err(failed) => {
                let Failed { page, backend } = *failed;
                counted(backend.traffic(), begun, limits.answer(&verdict, page, &accept))
            }
        }
    }
}

/// A page that was made here is an answer of the application as well.
fn counted(traffic: &Traffic, begun: Instant, page: Response<Body>) -> Response<Body> {
    // Of gRPC the status is always the same.
    let status = if page.headers().contains_key("grpc-status") { StatusCode::BAD_GATEWAY } else { page.status() };
    traffic.answered(status, begun.elapsed());
    page
}

/// The answer as it goes to the client. Its backend is busy until it has ended.
pub(super) fn answer(response: Response<Arriving>, backend: InFlight, begun: Instant) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let (status, stream) = (parts.status, parts.extensions.remove::<h2c::Stream>());
    let ended = move |sent| {
        backend.traffic().answered(status, begun.elapsed());
        backend.traffic().sent(sent);
        drop(stream);
    };
    Response::from_parts(parts, Body::new(Ending::new(body, ended)))
}

/// How long a tunnel has existed says nothing about who answered: it counts until it is open.
pub(super) fn tunnel_is_open(backend: &InFlight, waited: Duration) {
    backend.traffic().answered(StatusCode::SWITCHING_PROTOCOLS, waited);
}
