//! Detect: which group takes part, and with which plan.

use std::os::unix::fs::symlink;

use super::house::House;

/// What a buildpack answers: an exit code, or a plan. `r:x` requires x, `p:x` provides it, `|` begins an alternative.
fn script(answer: &str) -> String {
    if let Ok(code) = answer.parse::<i32>() {
        return format!("echo said by $CNB_BUILDPACK_DIR; exit {code}");
    }
    let mut plan = String::new();
    for (number, part) in answer.split('|').enumerate() {
        let table = if number == 0 { "" } else { "or." };
        if number > 0 {
            plan.push_str("[[or]]\n");
        }
        for word in part.split_whitespace() {
            let (kind, name) = word.split_once(':').unwrap();
            let kind = if kind == "p" { "provides" } else { "requires" };
            plan.push_str(&format!("[[{table}{kind}]]\nname = \"{name}\"\n"));
        }
    }
    format!("cat >\"$2\" <<'END'\n{plan}END")
}

/// Groups of `A? r:x, B`; `;` begins the next group.
fn house(order: &str) -> House {
    let house = House::new();
    let mut text = String::new();
    for group in order.split(';') {
        text.push_str("[[order]]\n");
        for element in group.split(',').map(str::trim).filter(|element| !element.is_empty()) {
            let (name, answer) = element.split_once(' ').unwrap_or((element, ""));
            let id = name.trim_end_matches('?');
            let optional = name.ends_with('?');
            text.push_str(&format!("[[order.group]]\nid = \"{id}\"\nversion = \"1\"\noptional = {optional}\n"));
            if !house.path(&format!("cnb/buildpacks/{id}")).exists() && id != "Z" {
                house.buildpack(id, "0.10", "", "detect", &script(answer));
            }
        }
    }
    house.file("cnb/order.toml", &text);
    house
}

/// The ids of the group and the entries of the plan, or the exit code.
fn outcome(house: &House) -> Result<(String, String), i32> {
    house.detect().map_err(|error| error.code)?;
    let read = |name: &str| -> toml::Table { toml::from_str(&house.read(name).unwrap()).unwrap() };
    let list = |table: &toml::Value, key: &str| table[key].as_array().unwrap().clone();
    let ids = |all: Vec<toml::Value>| {
        let ids: Vec<_> = all.iter().map(|element| element["id"].as_str().unwrap().to_owned()).collect();
        ids.join(",")
    };
    let entry = |entry: toml::Value| {
        let requires = list(&entry, "requires");
        format!("{}→{}({})", requires[0]["name"].as_str().unwrap(), ids(list(&entry, "providers")), requires.len())
    };
    let (group, plan) = (read("layers/group.toml").into(), toml::Value::from(read("layers/plan.toml")));
    let entries: Vec<_> = list(&plan, "entries").into_iter().map(entry).collect();
    Ok((ids(list(&group, "group")), entries.join(" ")))
}

#[test]
fn groups_are_found_as_by_the_real_detector() {
    // Those from 100 on are our own.
    let vectors = [
        (1, "A? r:x, B", Ok(("B", ""))),
        (2, "A r:x, B", Err(20)),
        (3, "A p:x, B", Err(20)),
        (4, "A? p:x, B", Ok(("B", ""))),
        (5, "A p:x |, B", Ok(("A,B", ""))),
        (8, "A p:x r:x", Ok(("A", "x→A(1)"))),
        (9, "A r:x, B p:x", Err(20)),
        (10, "A? r:x, B p:x, C r:x", Ok(("B,C", "x→B(1)"))),
        (11, "A p:x, B p:x, C r:x", Ok(("A,B,C", "x→A,B(1)"))),
        (12, "A p:x, C r:x, B p:x", Err(20)),
        (15, "A? 100, B? 100", Err(20)),
        (16, "A? 100, B?", Ok(("B", ""))),
        (17, "A 1; B", Ok(("B", ""))),
        (18, "A 1; B 100", Err(21)),
        (19, "A? 7, B", Ok(("B", ""))),
        (27, "A p:x, B r:x, C r:x", Ok(("A,B,C", "x→A(2)"))),
        (33, "A, Z", Err(1)),
        (40, "", Err(20)),
        // Alternatives are tried with the first buildpack varying slowest, and one is optional with its last only.
        (100, "A? r:y | r:x, B p:x |", Ok(("B", ""))),
        (101, "A? p:x | , B", Ok(("A,B", ""))),
        // The same buildpack twice counts once.
        (102, "A, B, A", Ok(("A,B", ""))),
    ];
    for (number, order, expected) in vectors {
        let found = outcome(&house(order));
        let expected = expected.map(|(group, plan): (&str, &str)| (group.to_owned(), plan.to_owned()));
        assert_eq!(found, expected, "vector {number}: {order}");
    }
}

#[test]
fn composites_stand_for_their_groups_with_what_follows() {
    let group = |ids: &str| {
        let element = |id: &str| format!("[[order.group]]\nid = \"{id}\"\nversion = \"1\"\n");
        format!("[[order]]\n{}", ids.split(',').map(element).collect::<String>())
    };
    let vectors = [
        (20, "M, E", "C 100, D, E", [group("C,D"), group("D")].concat(), Ok("D,E")),
        (23, "M, E", "C 100, E", group("C"), Err(20)),
        (103, "M?, E", "C 100, E", group("C"), Ok("E")),
        (104, "M", "M", group("M"), Err(22)),
    ];
    for (number, order, members, inner, expected) in vectors {
        let house = house(order);
        let others = self::house(members);
        let cnb = house.path("cnb/buildpacks");
        for id in members.split(", ").map(|member| &member[..1]).filter(|id| !cnb.join(id).exists()) {
            std::fs::rename(others.path(&format!("cnb/buildpacks/{id}")), cnb.join(id)).unwrap();
        }
        house.buildpack("M", "0.10", &format!("\n\n{inner}"), "unused", "");
        assert_eq!(outcome(&house).map(|(group, _)| group), expected.map(str::to_owned), "vector {number}");
    }
}

#[test]
fn descriptors_and_plans_are_read_as_by_the_real_detector() {
    let requires = |more: &str| format!("[[provides]]\nname = \"x\"\n[[requires]]\nname = \"x\"\n{more}");
    let arm = "[[targets]]\nos = \"linux\"\narch = \"arm64\"";
    let distro = "[[targets]]\n[[targets.distros]]\nname = \"ubuntu\"";
    let variant = |key: &str| format!("[[targets]]\nos = \"linux\"\narch = \"amd64\"\n{key} = \"v3\"");
    let vectors = [
        (25, "0.10", String::new(), requires("version = \"1\""), Err(21)),
        (26, "0.10", String::new(), requires("metadata.version = \"1\""), Ok("A,B")),
        (28, "0.10", arm.to_owned(), String::new(), Err(21)),
        (30, "0.10", format!("{distro}\nversion = \"22.04\""), String::new(), Err(21)),
        (31, "0.10", distro.to_owned(), String::new(), Ok("A,B")),
        (32, "0.10", "[unknown]\nkey = 1".to_owned(), "unknown = 1".to_owned(), Ok("A,B")),
        (34, "0.6", String::new(), String::new(), Err(12)),
        (35, "0.13", String::new(), String::new(), Err(12)),
        (36, "0.10", variant("variant"), String::new(), Ok("A,B")),
        (37, "0.10", variant("arch-variant"), String::new(), Ok("A,B")),
        (105, "0.10", String::new(), "not TOML".to_owned(), Err(21)),
    ];
    for (number, api, tables, plan, expected) in vectors {
        let house = house("A, B");
        let script = format!("cat >\"$2\" <<'END'\n{plan}\nEND");
        house.buildpack("A", api, &format!("\n\n{tables}"), "detect", &script);
        assert_eq!(outcome(&house).map(|(group, _)| group), expected.map(str::to_owned), "vector {number}");
    }
}

#[test]
fn apis_are_checked_before_anything_is_run() {
    let house = house("A; B");
    let ran = house.path("ran");
    house.buildpack("A", "0.10", "", "detect", &format!("touch {}", ran.display()));
    house.buildpack("B", "0.13", "", "detect", "");
    assert_eq!(outcome(&house), Err(12));
    assert!(!ran.exists());
}

#[test]
fn a_failure_says_which_buildpack_failed_and_why() {
    let error = house("A 1; B 100").detect().unwrap_err();
    assert!(error.cause.contains("buildpack A") && error.cause.contains("said by"), "{}", error.cause);
    let error = house("A r:x, B").detect().unwrap_err();
    assert!(error.cause.contains("A, B take this source"), "{}", error.cause);
    let error = house("A 100").detect().unwrap_err();
    assert!(error.cause.contains("no buildpack takes this source"), "{}", error.cause);
}

#[test]
fn only_folders_of_the_builder_are_buildpacks() {
    let house = house("A");
    let place = house.path("cnb/buildpacks/A");
    std::fs::rename(&place, house.path("elsewhere")).unwrap();
    symlink(house.path("elsewhere"), &place).unwrap();
    assert!(house.detect().unwrap_err().cause.contains("is not a folder"));
    for (id, version) in [("A", "../../../elsewhere/1"), ("..", "elsewhere"), ("config", "1")] {
        let order = format!("[[order]]\n[[order.group]]\nid = \"{id}\"\nversion = \"{version}\"\n");
        house.file("cnb/order.toml", &order);
        assert!(house.detect().unwrap_err().cause.contains("names no buildpack"), "{id}@{version}");
    }
}
