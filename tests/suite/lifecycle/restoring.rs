//! Restore: which metadata and which layers a build finds.

use std::fs;

use epiniod::{model::ImageName, oci::Layer};
use serde_json::{Value, json};

use super::house::{APP, CACHE, House, Shelf};

const OF_APP: &str = "io.buildpacks.lifecycle.metadata";
const OF_CACHE: &str = "io.buildpacks.lifecycle.cache.metadata";

/// The label of one layer `l`: flags as in `b l c`, and where it comes from as its metadata.
fn label(flags: &str, layer: &Layer, from: &str) -> Value {
    let [build, launch, cache] = ["b", "l", "c"].map(|flag| flags.contains(flag));
    let layer = json!({
        "sha": layer.diff_id, "data": { "from": from, "number": 1 }, "build": build, "launch": launch, "cache": cache,
    });
    let buildpack = json!({
        "key": "a/b", "version": "1", "layers": { "l": layer }, "store": { "metadata": { "from": from } },
    });
    json!({ "app": [], "buildpacks": [buildpack] })
}

async fn images(shelf: &Shelf, app: Option<(&str, &Layer)>, cache: Option<(&str, &Layer)>) -> [Option<ImageName>; 2] {
    let app = match app {
        Some((flags, layer)) => {
            let label = label(flags, layer, "app");
            Some(shelf.image(APP, &format!("{:x}", rand()), [(OF_APP, label)], vec![layer.clone()]).await)
        }
        None => None,
    };
    let cache = match cache {
        Some((flags, layer)) => {
            let label = label(flags, layer, "cache");
            Some(shelf.image(CACHE, "latest", [(OF_CACHE, label)], vec![layer.clone()]).await)
        }
        None => None,
    };
    [app, cache]
}

/// Tags of applications cannot be moved.
fn rand() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Where the metadata is from, if there is any, and whether the layer is there.
fn found(house: &House) -> (Option<String>, bool) {
    let file = house.read("layers/a_b/l.toml").map(|text| toml::from_str::<toml::Table>(&text).unwrap());
    let from = file.map(|table| {
        assert_eq!(table.get("types"), None, "types are for the buildpack to say");
        assert_eq!(table["metadata"]["number"].as_integer(), Some(1), "integers stay integers");
        table["metadata"]["from"].as_str().unwrap().to_owned()
    });
    (from, house.path("layers/a_b/l/file").exists())
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_restored_as_by_the_real_restorer() {
    let shelf = Shelf::new().await;
    let same = shelf.layer(CACHE, "layers/a_b/l/file", b"content").await;
    let other = shelf.layer(APP, "layers/a_b/l/file", b"other").await;
    shelf.client.mount(APP, CACHE, &same.blob.digest).await.unwrap();
    let (app, cache, none) = (Some("app"), Some("cache"), None);
    // Flags in the image (`!` for another content) and in the cache; whose metadata; whether there is a folder.
    let mut vectors = vec![("l", "", app, false)];
    vectors.extend(["", "b", "c", "bl", "lc", "bc", "blc"].map(|flags| (flags, "", none, false)));
    vectors.extend(["c", "lc", "bc", "blc"].map(|flags| ("-", flags, cache, true)));
    vectors.extend(["c", "c!", "bc", "bc!"].map(|flags| (flags, flags, cache, true)));
    vectors.extend(["lc", "blc"].map(|flags| (flags, flags, app, true)));
    vectors.extend(["lc!", "blc!"].map(|flags| (flags, flags, none, false)));
    vectors.extend([("lc", "c", cache, true), ("b", "bc", cache, true)]);
    for (in_app, in_cache, metadata, folder) in vectors {
        let house = House::new();
        let of_app = (in_app != "-").then_some((in_app, if in_app.ends_with('!') { &other } else { &same }));
        let of_cache = (!in_cache.is_empty()).then_some((in_cache.trim_end_matches('!'), &same));
        let [previous, cached] = images(&shelf, of_app, of_cache).await;
        let input = shelf.prepare(previous.as_ref(), cached.as_ref());
        let warnings = epiniod::lifecycle::restore(&house.dirs, &input, &shelf.client).await.unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let expected = (metadata.map(str::to_owned), folder);
        assert_eq!(found(&house), expected, "in the image '{in_app}', in the cache '{in_cache}'");
        let store = house.read("layers/a_b/store.toml");
        assert_eq!(store.is_some(), of_app.is_some(), "the store is that of the image");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_only_a_warning() {
    let shelf = Shelf::new().await;
    let layer = shelf.layer(CACHE, "layers/a_b/l/file", b"content").await;
    let [_, cache] = images(&shelf, None, Some(("c", &layer))).await;
    let input = shelf.prepare(None, cache.as_ref());
    let blob = shelf.blob(&layer.blob.digest);
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, [&bytes[..bytes.len() / 2], &[0; 32]].concat()).unwrap();
    let house = House::new();
    let warnings = epiniod::lifecycle::restore(&house.dirs, &input, &shelf.client).await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("layer 'l' of a/b was not restored"), "{warnings:?}");
    assert_eq!(found(&house), (None, false), "neither metadata nor half a layer is left");

    let foreign = shelf.image(APP, "foreign", [(OF_APP, json!("none of ours"))], vec![]).await;
    let house = House::new();
    let with_foreign = shelf.prepare(Some(&foreign), None);
    let warnings = epiniod::lifecycle::restore(&house.dirs, &with_foreign, &shelf.client).await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("cannot be read"), "{warnings:?}");

    let (manifest, _) = shelf.read(cache.as_ref().unwrap()).await;
    fs::write(shelf.blob(&manifest.config.digest), "{").unwrap();
    let house = House::new();
    let warnings = epiniod::lifecycle::restore(&house.dirs, &input, &shelf.client).await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("it is not used"), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_labels_do_not_lead_out_of_the_layers() {
    let shelf = Shelf::new().await;
    let layer = shelf.layer(APP, "layers/a_b/l/file", b"content").await;
    let mut label = label("l", &layer, "app");
    let entry = label["buildpacks"][0]["layers"]["l"].clone();
    label["buildpacks"][0]["layers"] = json!({ "../../out": entry });
    let previous = shelf.image(APP, "one", [(OF_APP, label)], vec![layer]).await;
    let house = House::new();
    let input = shelf.prepare(Some(&previous), None);
    epiniod::lifecycle::restore(&house.dirs, &input, &shelf.client).await.unwrap();
    assert!(!house.path("out.toml").exists());
}
