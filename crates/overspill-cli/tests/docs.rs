//! The pages say what is so: each figure with its description, links that lead somewhere,
//! commands with options that exist, tests that there are. Nothing here takes privilege.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use overspill::{Exits, Figure, MemberStatus, Requests};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file of the project whose name ends so, but for what is built, and for links.
fn files(ending: &str) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let kind = entry.file_type().unwrap();
            match kind.is_dir() {
                true if name.starts_with('.') || name == "target" => {}
                true => folders.push(entry.path()),
                false if kind.is_file() && name.ends_with(ending) => found.push(entry.path()),
                false => {}
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} in {}", root().display());
    found
}

/// The lines of a page: those of its text, and those of its blocks of code.
fn text_and_code(page: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut text, mut code, mut inside) = (Vec::new(), Vec::new(), false);
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            code.push(line);
        } else {
            text.push(line);
        }
    }
    assert!(!inside, "a block of code is not closed");
    (text, code)
}

/// What stands between two backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of each row of the tables in a part of a page, their heads left out.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, part) = page.split_once(&format!("\n{heading}\n")).expect("the heading");
    let part = part.lines().take_while(|line| !line.starts_with('#'));
    let table = part.filter(|line| line.starts_with('|'));
    table.skip(2).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[track_caller]
fn tells_of<T>(heading: &str, figures: &[Figure<T>]) {
    let page = read("docs/OPERATIONS.md");
    let told: Vec<(&str, &str)> = rows(&page, heading)
        .into_iter()
        .map(|cells| (quoted(cells[0]).next().expect("a name"), cells[1]))
        .collect();
    let wanted: Vec<(&str, &str)> = figures.iter().map(|it| (it.name, it.about)).collect();
    assert_eq!(told, wanted);
}

#[test]
fn every_figure_is_explained_and_no_other() {
    tells_of("### Of a service", Requests::FIGURES);
    tells_of("### Of a member", MemberStatus::FIGURES);
    tells_of("### Of the network namespace", Exits::FIGURES);
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|&c| c.is_alphanumeric() || " -_".contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(page: &str) -> BTreeSet<String> {
    let (text, _) = text_and_code(page);
    let headings = text.into_iter().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// Where the links of a page lead.
fn links(page: &str) -> Vec<String> {
    let (text, _) = text_and_code(page);
    // A link may be broken between two lines; a bracket in code begins none.
    let text = text.join("\n");
    let text: String = text.split('`').step_by(2).collect::<Vec<_>>().join("");
    let ends = text.split("](").skip(1);
    ends.map(|end| end.split(')').next().unwrap().to_owned()).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    for path in files(".md") {
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page).into_iter().filter(|link| !link.contains("://")) {
            let (file, part) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let leads = target.exists()
                && (part.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(part));
            if !leads {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// The words of each call of `overspill` in a line for the shell.
fn calls(line: &str) -> Vec<Vec<&str>> {
    let line = line.split(" #").next().unwrap();
    // What a worker's command line has in it is not ours.
    let line = line.split(" -- ").next().unwrap();
    let commands = line.split([';', '&', '|', '(', ')']);
    let words = commands.map(|command| command.split_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words.as_slice() {
            ["overspill" | "target/release/overspill", rest @ ..] => Some(rest.to_vec()),
            [_, "overspill", rest @ ..] if words[0] == "sudo" => Some(rest.to_vec()),
            _ => None,
        })
        .filter(|words| !words.is_empty())
        .collect()
}

/// The options of a command, where there is one of that name.
fn options(command: &str) -> Option<BTreeSet<String>> {
    let mut overspill = Command::new(env!("CARGO_BIN_EXE_overspill"));
    let output = overspill.args([command, "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    output.status.success().then(|| words.map(str::to_owned).collect())
}

#[test]
fn every_command_exists_and_has_the_options_it_is_given() {
    let (mut known, mut wrong) = (BTreeMap::new(), Vec::new());
    for path in files(".md") {
        let page = fs::read_to_string(&path).unwrap();
        let (text, code) = text_and_code(&page);
        let (text, code) = (text.join("\n"), code.join("\n").replace("\\\n", " "));
        let inline = quoted(&text).filter(|it| it.starts_with("overspill "));
        for words in code.lines().chain(inline).flat_map(calls) {
            let command = words[0];
            // Not `overspill --version`, nor words that stand for others: `overspill ...`.
            if !command.starts_with(|c: char| c.is_ascii_lowercase()) {
                continue;
            }
            let known = known.entry(command.to_owned()).or_insert_with(|| options(command));
            let given = words.iter().filter(|word| word.starts_with('-') && word.len() > 1);
            let mut given = given.map(|option| option.split('=').next().unwrap());
            if !known.as_ref().is_some_and(|known| given.all(|option| known.contains(option))) {
                wrong.push(format!("{}: overspill {}", path.display(), words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(known.len() > 10, "{:?}", known.keys());
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let page = read("docs/SPECIFICATION.md");
    let code: String = files(".rs").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let named = |path: &PathBuf| {
        let path = path.strip_prefix(root()).unwrap().with_extension("");
        path.iter().map(|name| name.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let modules: BTreeSet<String> = files(".rs").iter().flat_map(named).collect();
    let promises = page.lines().filter(|line| {
        let mut start = line.trim_start_matches("| ").chars();
        line.starts_with("| ")
            && start.next().is_some_and(|c| c.is_ascii_uppercase())
            && start.next().is_some_and(|c| c.is_ascii_digit())
    });
    let mut count = 0;
    for line in promises {
        let tests = line.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        assert!(quoted(tests).next().is_some(), "no test: {line}");
        for test in quoted(tests) {
            let name = test.rsplit("::").next().unwrap();
            let exists = code.contains(&format!("fn {name}("))
                || modules.contains(name)
                || (test.contains('/') && root().join(test).exists());
            assert!(exists, "there is no test {test}: {line}");
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn every_room_of_the_architecture_exists() {
    let page = read("docs/ARCHITECTURE.md");
    for row in rows(&page, "## The rooms") {
        for path in quoted(row[0]) {
            assert!(root().join(path).exists(), "there is no {path}");
        }
    }
}

#[test]
fn the_list_of_pages_has_them_all() {
    let listed: BTreeSet<PathBuf> = links(&read("docs/README.md"))
        .into_iter()
        .filter_map(|link| root().join("docs").join(link).canonicalize().ok())
        .collect();
    for folder in ["docs", "docs/ways", "docs/decisions"] {
        let is_list = |path: &Path| folder == "docs" && path.ends_with("docs/README.md");
        for page in fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            // Decisions have a list of their own.
            let wanted = folder != "docs/decisions" || page.ends_with("README.md");
            if page.extension().is_some_and(|it| it == "md") && wanted && !is_list(&page) {
                assert!(listed.contains(&page), "{} is not listed", page.display());
            }
        }
    }
    let decisions = links(&read("docs/decisions/README.md"));
    for page in fs::read_dir(root().join("docs/decisions")).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || decisions.contains(&name), "{name} is not listed");
    }
}
