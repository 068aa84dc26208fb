//! Bills of materials: collected from beside the layers into a folder that becomes a layer, and laid back beside them.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use super::{
    Context as _, Dirs, Error, Result, escape, layers::Layer, open_foreign, phase::CnbUser, prepare::own,
    types::GroupElement,
};
use crate::oci::tree::remove_tree;

/// How files of a media type end.
const FORMATS: [(&str, &str); 3] = [
    ("cdx.json", "application/vnd.cyclonedx+json"),
    ("spdx.json", "application/spdx+json"),
    ("syft.json", "application/vnd.syft+json"),
];
/// One may have so many bytes.
const MAX_BYTES: u64 = 64 << 20;

/// One that a buildpack wrote, and where it is collected, below `/layers/sbom`.
#[derive(Debug)]
pub(super) struct Sbom {
    from: PathBuf,
    to: Vec<PathBuf>,
}

/// What a buildpack wrote. It has to declare the formats; what belongs to no layer is left out.
pub(super) fn find(
    own: &Path,
    element: &GroupElement,
    declared: &[String],
    layers: &[Layer],
    code: i32,
) -> Result<Vec<Sbom>> {
    let doing = || format!("reading {}", own.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(own).context(code, doing)? {
        let entry = entry.context(code, doing)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let parts = FORMATS
            .iter()
            .find_map(|(end, media_type)| Some((name.strip_suffix(end)?.strip_suffix(".sbom.")?, end, media_type)));
        let Some((of, end, media_type)) = parts else { continue };
        if !declared.iter().any(|known| known.split(';').next() == Some(media_type)) {
            let id = &element.id;
            let cause = format!("buildpack {id} wrote {name}, but does not declare {media_type} in its sbom-formats");
            return Err(Error::new(code, cause));
        }
        let folder = Path::new(&escape(&element.id)).to_owned();
        let to = match (of, layers.iter().find(|layer| layer.name == of)) {
            ("launch" | "build", _) => vec![Path::new(of).join(folder)],
            (_, Some(layer)) => {
                let kinds =
                    [(layer.types.launch, "launch"), (layer.types.build, "build"), (layer.types.cache, "cache")];
                let wanted = kinds.into_iter().filter(|(wanted, _)| *wanted);
                wanted.map(|(_, kind)| Path::new(kind).join(&folder).join(of)).collect()
            }
            _ => continue,
        };
        let to = to.into_iter().map(|folder| folder.join(format!("sbom.{end}"))).collect();
        found.push(Sbom { from: entry.path(), to });
    }
    Ok(found)
}

/// Copies all to `/layers/sbom`, in place of whatever is there.
pub(super) fn collect(dirs: &Dirs, found: &[Sbom], code: i32) -> Result<()> {
    let root = dirs.layers.join("sbom");
    let removed = match fs::symlink_metadata(&root) {
        Ok(metadata) if !metadata.is_dir() => fs::remove_file(&root),
        _ => remove_tree(&root),
    };
    removed.context(code, || format!("removing {}", root.display()))?;
    for sbom in found {
        for place in &sbom.to {
            let place = root.join(place);
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder).context(code, || format!("creating {}", folder.display()))?;
            }
            copy(&sbom.from, &place, code)?;
        }
    }
    Ok(())
}

/// Lays what was collected for a layer (`kind` is `launch` or `cache`) back beside it: a buildpack that uses the layer
/// again does not write it again.
pub(super) fn lay_back(dirs: &Dirs, kind: &str, id: &str, layer: &str, user: CnbUser) -> Result<()> {
    let collected = dirs.layers.join("sbom").join(kind).join(escape(id)).join(layer);
    for (end, _) in FORMATS {
        let place = dirs.layers.join(escape(id)).join(format!("{layer}.sbom.{end}"));
        if copy(&collected.join(format!("sbom.{end}")), &place, 1)? {
            own(&place, user)?;
        }
    }
    Ok(())
}

/// False when there is nothing to copy.
fn copy(from: &Path, to: &Path, code: i32) -> Result<bool> {
    let Some(file) = open_foreign(from, code)? else { return Ok(false) };
    let doing = || format!("copying {} to {}", from.display(), to.display());
    let mut target = fs::File::create(to).context(code, doing)?;
    let copied = io::copy(&mut file.take(MAX_BYTES + 1), &mut target).context(code, doing)?;
    if copied > MAX_BYTES {
        return Err(Error::new(code, format!("{} is larger than 64 MiB", from.display())));
    }
    Ok(true)
}
