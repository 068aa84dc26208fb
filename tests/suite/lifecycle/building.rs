//! Build: what buildpacks get, and what is made of what they leave.

use std::collections::BTreeMap;

use epiniod::lifecycle::phase::Detect;

use super::house::{House, detect_input};

/// A group of buildpacks: id, API, what else is in `buildpack.toml`, script.
fn house(buildpacks: &[(&str, &str, &str, &str)]) -> House {
    let house = House::new();
    let mut group = String::new();
    for (id, api, rest, script) in buildpacks {
        house.buildpack(id, api, rest, "build", script);
        group.push_str(&format!("[[group]]\nid = \"{id}\"\nversion = \"1\"\napi = \"{api}\"\n"));
    }
    house.file("layers/group.toml", &group);
    house
}

/// A script that writes a file of its layers folder.
fn writes(name: &str, text: &str) -> String {
    format!("mkdir -p \"$(dirname \"$1/{name}\")\"; cat >\"$1/{name}\" <<'END'\n{text}\nEND\n")
}

fn metadata(house: &House) -> toml::Table {
    toml::from_str(&house.read("layers/config/metadata.toml").unwrap()).unwrap()
}

/// The environment that a buildpack of this API sees, but for what its shell adds.
fn environment(house: &House) -> BTreeMap<String, String> {
    house.build().unwrap();
    let seen = house.read("layers/a/seen").unwrap();
    let all = seen.split('\0').filter_map(|entry| entry.split_once('='));
    let of_shell = |name: &str| matches!(name, "PWD" | "OLDPWD" | "SHLVL" | "_");
    all.filter(|(name, _)| !of_shell(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_environment_is_what_the_specification_gives() {
    let new = house(&[("a", "0.10", "", "env -0 >\"$1/seen\"")]);
    let old = house(&[("a", "0.7", "clear-env = true", "env -0 >\"$1/seen\"")]);
    for house in [&new, &old] {
        for (name, value) in [("FOO", "platform\n"), ("PATH", "/pp"), ("LIBRARY_PATH", "/lp")] {
            house.file(&format!("platform/env/{name}"), value);
        }
        house.file("cnb/build-config/env/BAR", "bc");
    }
    for (name, value) in [("FOO", "bcfoo"), ("PATH.append", "/bcpath"), ("PATH.delim", ":")] {
        new.file(&format!("cnb/build-config/env/{name}"), value);
    }
    let path = |house: &House, name: &str| house.path(name).display().to_string();
    let expected = [
        ("BAR", "bc".to_owned()),
        ("FOO", "platform\n".to_owned()),
        ("PATH", "/pp:/usr/bin:/bin:/bcpath".to_owned()),
        ("LIBRARY_PATH", "/lp".to_owned()),
        ("HOME", "/home/cnb".to_owned()),
        ("CNB_STACK_ID", "stack".to_owned()),
        ("CNB_BUILDPACK_DIR", path(&new, "cnb/buildpacks/a/1")),
        ("CNB_BP_PLAN_PATH", path(&new, "tmp/buildpack-plan-a.toml")),
        ("CNB_LAYERS_DIR", path(&new, "layers/a")),
        ("CNB_PLATFORM_DIR", path(&new, "platform")),
        ("CNB_TARGET_OS", "linux".to_owned()),
        ("CNB_TARGET_ARCH", "amd64".to_owned()),
        ("CNB_TARGET_DISTRO_NAME", "ubuntu".to_owned()),
        ("CNB_TARGET_DISTRO_VERSION", "24.04".to_owned()),
    ];
    assert_eq!(environment(&new), expected.map(|(name, value)| (name.to_owned(), value)).into());
    let expected = [
        ("BAR", "bc".to_owned()),
        ("HOME", "/home/cnb".to_owned()),
        ("PATH", "/usr/bin:/bin".to_owned()),
        ("CNB_STACK_ID", "stack".to_owned()),
        ("CNB_BUILDPACK_DIR", path(&old, "cnb/buildpacks/a/1")),
    ];
    assert_eq!(environment(&old), expected.map(|(name, value)| (name.to_owned(), value)).into());
}

#[test]
fn layers_give_to_the_buildpacks_after_them() {
    let first = [
        writes("x.toml", "[types]\nbuild = true"),
        writes("x/env/A.append", "x"),
        writes("x/env.build/B.override", "y"),
        writes("x/env.launch/C.override", "z"),
        "mkdir -p \"$1/x/bin\"".to_owned(),
    ];
    let house = house(&[("b/first", "0.10", "", &first.concat()), ("a", "0.10", "", "env -0 >\"$1/seen\"")]);
    let seen = environment(&house);
    let bin = house.path("layers/b_first/x/bin").display().to_string();
    assert_eq!(seen["PATH"], format!("{bin}:/usr/bin:/bin"));
    assert_eq!((seen["A"].trim(), seen["B"].trim(), seen.get("C")), ("x", "y", None));
}

#[test]
fn what_is_wrong_has_its_exit_code() {
    let process = |rest: &str| format!("[[processes]]\ntype = \"web\"\n{rest}");
    let two = "command = [\"x\"]\ndefault = true\n[[processes]]\ntype = \"b\"\ncommand = [\"x\"]\ndefault = true";
    let vectors = [
        ("0.10", writes("x.toml", "launch = true"), "belongs into [types]"),
        ("0.10", writes("x.toml", "not TOML"), "x.toml is not valid"),
        ("0.10", writes("launch.toml", "not TOML"), "launch.toml is not valid"),
        ("0.10", writes("launch.toml", &process(two)), "more than one process is the default"),
        ("0.9", writes("launch.toml", &process("command = [\"x\"]\ndirect = true")), "'direct' is not in this API"),
        ("0.9", writes("launch.toml", &process("command = \"x\"")), "not a list of words"),
        ("0.8", writes("launch.toml", &process("command = [\"x\"]")), "not a text"),
        ("0.10", writes("build.toml", "[[unmet]]\nname = \"x\""), "which it was not asked for"),
        ("0.10", writes("launch.sbom.cdx.json", "{}"), "does not declare application/vnd.cyclonedx+json"),
    ];
    for (api, script, message) in vectors {
        let error = house(&[("a", api, "", &script)]).build().unwrap_err();
        assert_eq!(error.code, 52, "{script}: {}", error.cause);
        assert!(error.cause.contains(message), "{script}: {}", error.cause);
    }
    assert_eq!(house(&[("a", "0.10", "", "exit 3")]).build().unwrap_err().code, 51);
}

#[test]
fn folders_that_are_no_layers_are_set_aside() {
    let script = [
        writes("x.toml", "[types]"),
        writes("x/file", ""),
        writes("launch.toml", ""),
        writes("launch/file", ""),
        writes("y/file", ""),
    ];
    let house = house(&[("a", "0.10", "", &script.concat())]);
    house.build().unwrap();
    for (name, there) in [("x", false), ("x.ignore", true), ("launch", false), ("launch.ignore", true), ("y", true)] {
        assert_eq!(house.path(&format!("layers/a/{name}")).exists(), there, "{name}");
    }
}

#[test]
fn processes_and_labels_of_all_buildpacks_are_joined() {
    let launch = |text: &str| writes("launch.toml", text);
    let default = "[[processes]]\ntype = \"web\"\ncommand = [\"a\"]\ndefault = true\n";
    let label = |value: &str| format!("[[labels]]\nkey = \"k\"\nvalue = \"{value}\"\n");
    let first = launch(&format!("{default}{}", label("1")));
    let again = launch(&format!("[[processes]]\ntype = \"web\"\ncommand = [\"b\"]\n{}", label("2")));
    let other = launch("[[processes]]\ntype = \"api\"\ncommand = [\"b\"]\ndefault = true\n");
    for (second, default) in [(&again, None), (&other, Some("api"))] {
        let house = house(&[("a", "0.10", "", &first), ("b", "0.10", "", second)]);
        house.build().unwrap();
        let found = metadata(&house);
        assert_eq!(found.get("buildpack-default-process-type").and_then(toml::Value::as_str), default);
    }
    let house = house(&[("a", "0.10", "", &first), ("b", "0.10", "", &again)]);
    house.build().unwrap();
    let found = metadata(&house);
    let values: Vec<_> =
        found["labels"].as_array().unwrap().iter().map(|label| label["value"].as_str().unwrap()).collect();
    assert_eq!(values, ["1", "2"]);
}

#[test]
fn old_processes_have_no_folder_of_their_own() {
    let text = "[[processes]]\ntype = \"web\"\ncommand = \"x\"\nargs = []\ndirect = true\nworking-dir = \"/tmp\"\n\
                [[slices]]\npaths = [\"*.js\"]";
    let house = house(&[("a", "0.7", "", &writes("launch.toml", text))]);
    house.build().unwrap();
    let found = metadata(&house);
    let process = &found["processes"][0];
    assert_eq!((process.get("working-dir"), process["direct"].as_bool()), (None, Some(true)));
    assert_eq!(found["slices"][0]["paths"][0].as_str(), Some("*.js"));
}

#[test]
fn entries_are_offered_until_they_are_met() {
    let seen = |more: &str| format!("cat \"$3\" >\"$1/plan\"\n{more}");
    let unmet = writes("build.toml", "[[unmet]]\nname = \"x\"");
    let house = house(&[("a", "0.10", "", &seen(&unmet)), ("b", "0.10", "", &seen("")), ("c", "0.10", "", &seen(""))]);
    let provider = |id: &str| format!("[[entries.providers]]\nid = \"{id}\"\nversion = \"1\"\n");
    let providers = ["a", "b", "c"].map(provider).concat();
    house.file("layers/plan.toml", &format!("[[entries]]\n{providers}[[entries.requires]]\nname = \"x\"\n"));
    house.build().unwrap();
    let offered = ["a", "b", "c"].map(|id| house.read(&format!("layers/{id}/plan")).unwrap().contains("\"x\""));
    assert_eq!(offered, [true, true, false]);
}

#[test]
fn bills_of_materials_are_collected() {
    let formats = "sbom-formats = [\"application/spdx+json\", \"application/vnd.cyclonedx+json\"]";
    let script = [
        writes("x.toml", "[types]\nlaunch = true\ncache = true"),
        writes("x.sbom.spdx.json", "x"),
        writes("launch.sbom.cdx.json", "launch"),
        writes("build.sbom.cdx.json", "build"),
        writes("nothing.sbom.cdx.json", "nothing"),
    ];
    let house = house(&[("a/b", "0.10", formats, &script.concat())]);
    // What is left of an earlier build, or what a buildpack put there, is none of ours.
    house.file("layers/sbom/launch/old/sbom.cdx.json", "old");
    house.build().unwrap();
    let found = |name: &str| house.read(&format!("layers/sbom/{name}")).map(|text| text.trim().to_owned());
    for (name, expected) in [
        ("launch/a_b/x/sbom.spdx.json", Some("x")),
        ("cache/a_b/x/sbom.spdx.json", Some("x")),
        ("build/a_b/x/sbom.spdx.json", None),
        ("launch/a_b/sbom.cdx.json", Some("launch")),
        ("build/a_b/sbom.cdx.json", Some("build")),
        ("launch/a_b/nothing/sbom.cdx.json", None),
        ("launch/old/sbom.cdx.json", None),
    ] {
        assert_eq!(found(name).as_deref(), expected, "{name}");
    }
}

#[test]
fn where_nobody_was_asked_before_the_build_asks() {
    let house = House::new();
    house.file("cnb/order.toml", "[[order]]\n[[order.group]]\nid = \"a\"\nversion = \"1\"\n");
    house.buildpack("a", "0.10", "", "detect", "echo '[[provides]]\nname = \"x\"\n[[requires]]\nname = \"x\"' >\"$2\"");
    house.buildpack("a", "0.10", "", "build", "cp \"$CNB_BP_PLAN_PATH\" \"$1/plan\"");
    let built = house.detect_and_build(detect_input()).unwrap();
    let detected = built.detected.unwrap();
    assert_eq!((detected.buildpacks.len(), detected.buildpacks[0].id.as_str()), (1, "a"));
    assert!(house.read("layers/a/plan").unwrap().contains("name = \"x\""), "the plan of the detection is the build's");
}

#[test]
fn a_builder_without_an_order_has_that_of_its_label_and_is_named_when_nobody_takes_part() {
    let house = House::new();
    house.buildpack("a", "0.10", "", "detect", "exit 100");
    let order = serde_json::json!([{ "group": [{ "id": "a", "version": "1" }] }]);
    let input = |order| Detect { builder: Some("a/builder:1".to_owned()), order, ..detect_input() };
    let error = house.detect_and_build(input(Some(order))).unwrap_err();
    assert_eq!(error.code, 20);
    assert!(error.cause.contains("no buildpack of builder a/builder:1 takes this source"), "{}", error.cause);
    let error = house.detect_and_build(input(None)).unwrap_err();
    assert!(error.cause.contains("builder a/builder:1 says nowhere which buildpacks it has"), "{}", error.cause);
}

#[test]
fn what_a_builder_does_not_say_of_its_distribution_its_image_does() {
    let house = House::new();
    house.file("cnb/order.toml", "[[order]]\n[[order.group]]\nid = \"a\"\nversion = \"1\"\n");
    house.buildpack("a", "0.10", "", "detect", "echo \"$CNB_TARGET_DISTRO_NAME\" >seen");
    house.buildpack("a", "0.10", "", "build", "");
    let Detect { mut target, builder, order } = detect_input();
    (target.distro_name, target.distro_version) = (String::new(), String::new());
    house.detect_and_build(Detect { target, builder, order }).unwrap();
    let release = std::fs::read_to_string("/etc/os-release").unwrap();
    let id = release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap().trim_matches('"');
    assert_eq!(house.read("workspace/seen").unwrap().trim(), id);
}
