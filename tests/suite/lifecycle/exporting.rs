//! Export: which layers are added, used again or refused, and what the image and the cache are made of.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

use epiniod::{
    lifecycle::{Error, export_to, phase::Exported},
    model::ImageName,
};

use super::house::{APP, CACHE, House, Shelf};

/// A build of one buildpack with an application of one file.
fn house() -> House {
    let house = House::new();
    house.file("layers/group.toml", "[[group]]\nid = \"a/b\"\nversion = \"1\"\napi = \"0.10\"\n");
    house.file("layers/config/metadata.toml", "");
    house.file("workspace/app.js", "app");
    fs::create_dir(house.path("layers/a_b")).unwrap();
    house
}

fn layer(house: &House, name: &str, types: &str, content: Option<&str>) {
    let flags = types.split_whitespace().map(|flag| format!("{flag} = true\n")).collect::<String>();
    house.file(&format!("layers/a_b/{name}.toml"), &format!("[types]\n{flags}"));
    if let Some(content) = content {
        house.file(&format!("layers/a_b/{name}/file"), content);
    }
}

async fn export(shelf: &Shelf, house: &House, tag: &str, previous: Option<&ImageName>) -> Result<Exported, Error> {
    export_to(&house.dirs, &shelf.export(tag, previous), &shelf.client).await
}

/// What made each layer that is not of the base.
async fn layers(shelf: &Shelf, image: &ImageName) -> Vec<String> {
    let (_, config) = shelf.read(image).await;
    config.history.into_iter().skip(1).filter_map(|entry| entry.created_by).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_decided_on_as_by_the_real_exporter() {
    let shelf = Shelf::new().await;
    let first = house();
    layer(&first, "l1", "launch", Some("one"));
    let previous = export(&shelf, &first, "first", None).await.unwrap().image;
    // Content and flags of a layer; how many layers are added besides app, launcher and config, or the refusal.
    let vectors = [
        ("l1", "launch", Some("one"), Ok(0)),
        ("l1", "launch", Some("two"), Ok(1)),
        ("l1", "launch", None, Ok(0)),
        ("l1", "launch build", None, Ok(0)),
        ("l1", "launch cache", None, Err("is cache=true but has no contents")),
        ("l2", "launch", None, Err("cannot be reused: the previous image does not have it")),
        ("l2", "launch", Some("one"), Ok(1)),
        ("l1", "build", Some("one"), Ok(0)),
        ("l1", "cache", Some("one"), Ok(0)),
        ("l1", "", Some("one"), Ok(0)),
        ("l2", "launch build cache", Some("one"), Ok(1)),
        ("l1", "launch cache", Some("one"), Ok(0)),
    ];
    let empty = house();
    layer(&empty, "l1", "launch", None);
    fs::create_dir(empty.path("layers/a_b/l1")).unwrap();
    assert_eq!(export(&shelf, &empty, "empty", Some(&previous)).await.unwrap().layers_added, 1);
    for (number, (name, types, content, expected)) in vectors.into_iter().enumerate() {
        let house = house();
        layer(&house, name, types, content);
        let exported = export(&shelf, &house, &number.to_string(), Some(&previous)).await;
        match (exported, expected) {
            (Ok(exported), Ok(added)) => {
                assert_eq!(exported.layers_added, added, "{name} {types} {content:?}");
                let there = layers(&shelf, &exported.image).await.iter().any(|layer| layer.starts_with("Layer:"));
                assert_eq!(there, types.contains("launch"), "{name} {types} {content:?}");
            }
            (Err(error), Err(message)) => {
                assert!(error.code == 62 && error.cause.contains(message), "{name} {types}: {error:?}");
            }
            (found, _) => panic!("{name} {types} {content:?}: {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_its_layers_in_their_order() {
    let shelf = Shelf::new().await;
    let house = house();
    layer(&house, "a-b", "launch", Some("1"));
    layer(&house, "a", "launch", Some("2"));
    house.file("layers/sbom/launch/a_b/sbom.cdx.json", "{}");
    house.file("workspace/lib/x.js", "lib");
    house.file("workspace/lib/y.txt", "text");
    let metadata = "[[slices]]\npaths = [\"lib/*.js\"]\n\
                    [[processes]]\ntype = \"web\"\ncommand = [\"x\"]\nargs = []\ndirect = true\nbuildpack-id = \"a/b\"\n";
    house.file("layers/config/metadata.toml", metadata);
    let image = export(&shelf, &house, "one", None).await.unwrap().image;
    assert_eq!(
        layers(&shelf, &image).await,
        [
            "Layer: 'a', Created by buildpack: a/b@1",
            "Layer: 'a-b', Created by buildpack: a/b@1",
            "Software Bill-of-Materials",
            "Application Slice: 1",
            "Application Slice: 2",
            "Buildpacks Application Launcher",
            "Buildpacks Launcher Config",
            "Buildpacks Process Types",
        ]
    );
    let (manifest, config) = shelf.read(&image).await;
    assert_eq!(config.history.len(), manifest.layers.len(), "or a later rebase fails");
    let names = async |number: usize| {
        let entries = shelf.entries(APP, &manifest.layers[number]).await;
        entries.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(names(4).await, ["/workspace", "/workspace/lib", "/workspace/lib/x.js"]);
    assert_eq!(names(5).await, ["/workspace", "/workspace/app.js", "/workspace/lib", "/workspace/lib/y.txt"]);
    let label = &config.config.labels.unwrap()["io.buildpacks.lifecycle.metadata"];
    let label: serde_json::Value = serde_json::from_str(label).unwrap();
    assert_eq!(label["sbom"]["sha"], config.rootfs.diff_ids[3].to_string());
    assert_eq!(label["app"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_may_not_be_larger_than_it_may() {
    let shelf = Shelf::new().await;
    let house = house();
    layer(&house, "holes", "launch", Some(""));
    let file = fs::File::options().write(true).open(house.path("layers/a_b/holes/file")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = export(&shelf, &house, "one", None).await.unwrap_err();
    assert!(error.code == 62 && error.cause.contains("Layer: 'holes'"), "{}", error.cause);
    assert!(error.cause.contains("max_unpacked_bytes"), "{}", error.cause);
    // Names of one file are as many copies, and the layers have their limit together.
    file.set_len(40 << 20).unwrap();
    fs::hard_link(house.path("layers/a_b/holes/file"), house.path("workspace/copy")).unwrap();
    let error = export(&shelf, &house, "two", None).await.unwrap_err();
    assert!(error.cause.contains("Application Layer"), "{}", error.cause);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_a_folder() {
    let shelf = Shelf::new().await;
    let house = house();
    layer(&house, "l", "launch", None);
    symlink("/etc", house.path("layers/a_b/l")).unwrap();
    assert!(export(&shelf, &house, "one", None).await.unwrap_err().cause.contains("is a file or a link"));
    fs::remove_dir_all(house.path("layers/a_b")).unwrap();
    symlink("/etc", house.path("layers/a_b")).unwrap();
    assert!(export(&shelf, &house, "one", None).await.unwrap_err().cause.contains("is a file or a link"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_what_is_cached_now() {
    let shelf = Shelf::new().await;
    let first = house();
    layer(&first, "both", "launch cache", Some("one"));
    layer(&first, "only", "build cache", Some("two"));
    let exported = export(&shelf, &first, "one", None).await.unwrap();
    let (manifest, config) = shelf.read(&exported.cache.unwrap()).await;
    assert_eq!(manifest.layers.len(), 2);
    assert_eq!(config.architecture, "riscv64", "that of the run image");
    let (image, _) = shelf.read(&exported.image).await;
    assert_eq!(manifest.layers[0], image.layers[1], "what the image has as well is the same blob");
    let nothing = house();
    let emptied = export(&shelf, &nothing, "two", None).await.unwrap().cache.expect("an empty cache");
    assert_eq!(shelf.read(&emptied).await.0.layers, []);
    assert_eq!(export(&shelf, &nothing, "three", None).await.unwrap().cache, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cache_is_whole_again_after_the_next_build() {
    let shelf = Shelf::new().await;
    let first = house();
    layer(&first, "both", "launch cache", Some("one"));
    layer(&first, "only", "build cache", Some("two"));
    let exported = export(&shelf, &first, "one", None).await.unwrap();
    let cache = exported.cache.clone().unwrap();
    let (manifest, _) = shelf.read(&cache).await;
    let whole: BTreeMap<_, _> = manifest.layers.iter().map(|blob| (shelf.blob(&blob.digest), blob.digest)).collect();
    for path in whole.keys() {
        fs::write(path, "broken").unwrap();
    }
    let second = house();
    let input = shelf.prepare(Some(&exported.image), Some(&cache));
    let warnings = epiniod::lifecycle::restore(&second.dirs, &input, &shelf.client).await.unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    layer(&second, "both", "launch cache", Some("one"));
    layer(&second, "only", "build cache", Some("two"));
    export(&shelf, &second, "two", Some(&exported.image)).await.unwrap();
    for (path, digest) in whole {
        assert_eq!(epiniod::model::Digest::of(fs::read(path).unwrap()), digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_done_without() {
    let shelf = Shelf::new().await;
    let house = house();
    layer(&house, "l", "launch cache", Some("one"));
    let first = export(&shelf, &house, "one", None).await.unwrap();
    for image in [&first.image, first.cache.as_ref().unwrap()] {
        let (manifest, _) = shelf.read(image).await;
        fs::write(shelf.blob(&manifest.config.digest), "{").unwrap();
    }
    let second = export(&shelf, &house, "two", Some(&first.image)).await.unwrap();
    assert_eq!(second.warnings.len(), 2, "{:?}", second.warnings);
    assert!(second.cache.is_some());
    assert!(shelf.client.manifest(CACHE, "latest").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn bills_of_materials_come_back_with_their_layers() {
    let shelf = Shelf::new().await;
    let first = house();
    layer(&first, "l", "launch", Some("one"));
    first.file("layers/sbom/launch/a_b/l/sbom.cdx.json", "bill");
    let image = export(&shelf, &first, "one", None).await.unwrap().image;
    let second = House::new();
    let input = shelf.prepare(Some(&image), None);
    let warnings = epiniod::lifecycle::restore(&second.dirs, &input, &shelf.client).await.unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(second.read("layers/a_b/l.sbom.cdx.json").as_deref(), Some("bill"));
    assert!(!second.path("layers/a_b/l").exists(), "layers that are only launched are not restored");
}
