//! The modules of the library, and of the supervisor, form no ring: a module uses modules below it, never the one that
//! it is part of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by its path; the crate itself is the empty one.
type Module = Vec<String>;
/// What each module uses.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// The sources of all modules below a folder.
fn sources(folder: &Path, module: &Module, found: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let child = [module.clone(), vec![name.clone()]].concat();
        if path.is_dir() {
            sources(&path, &child, found);
        } else if name != "tests" {
            let own = ["lib", "mod"].contains(&name.as_str());
            let text = code(&fs::read_to_string(&path).unwrap());
            found.insert(if own { module.clone() } else { child }, text);
        }
    }
}

/// What is compiled into the library, without comments: unit tests are above all modules.
fn code(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines: Vec<&str> = source.lines().map(|line| line.split("//").next().unwrap()).collect();
    lines.join("\n")
}

/// The paths that begin with `crate::` or `super::`, in `use` lines or elsewhere, seen from a
/// module. Lists in braces are taken apart.
fn paths(text: &str, module: &Module) -> Vec<Module> {
    let mut found = Vec::new();
    for start in ["crate", "super"] {
        for (at, _) in text.match_indices(&format!("{start}::")) {
            let before = text[..at].chars().next_back().unwrap_or(' ');
            // Within a longer path, or of a macro, which means the same.
            if !before.is_alphanumeric() && before != '_' && !text[..at].ends_with("super::") {
                branches(&text[at..], module.clone(), &mut found);
            }
        }
    }
    found
}

/// Reads one path; returns what follows it.
fn branches<'a>(text: &'a str, mut path: Module, found: &mut Vec<Module>) -> &'a str {
    let mut rest = text.trim_start();
    if let Some(list) = rest.strip_prefix('{') {
        rest = list.trim_start();
        while !rest.starts_with('}') {
            rest = branches(rest, path.clone(), found).trim_start_matches([',', ' ', '\n']);
        }
        return &rest[1..];
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, after) = rest.split_at(end.max(1));
    match name {
        "crate" => path.clear(),
        "super" => drop(path.pop()),
        "self" => {}
        _ => path.push(name.to_owned()),
    }
    if let Some(after) = after.strip_prefix("::") {
        return branches(after, path, found);
    }
    found.push(path);
    // `as NAME`
    after.trim_start_matches(|c: char| c.is_alphanumeric() || " _".contains(c))
}

/// The crates that are looked at, and how many modules they have at least.
const CRATES: [(&str, usize); 2] = [("overspill", 40), ("overspill-supervisor", 25)];

fn graph(crate_: &str) -> Graph {
    let mut all = BTreeMap::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_).join("src");
    sources(&folder, &Vec::new(), &mut all);
    let mut graph = Graph::new();
    for (module, text) in &all {
        let uses = graph.entry(module.clone()).or_default();
        for mut path in paths(text, module) {
            // The longest beginning that is a module: the rest are items of it.
            while !all.contains_key(&path) {
                path.pop();
            }
            uses.insert(path);
        }
        uses.remove(module);
        // It declares them, and hands on what they have.
        let is_child = |it: &&Module| it.split_last().is_some_and(|(_, parent)| parent == module);
        uses.extend(all.keys().filter(is_child).cloned());
    }
    graph
}

/// Modules that use each other, in the order of a ring; empty if there are none.
fn ring(graph: &Graph) -> Vec<String> {
    fn visit(
        at: &Module,
        graph: &Graph,
        way: &mut Vec<Module>,
        done: &mut BTreeSet<Module>,
    ) -> bool {
        if let Some(begin) = way.iter().position(|it| it == at) {
            way.drain(..begin);
            return true;
        }
        way.push(at.clone());
        if !done.contains(at) && graph[at].iter().any(|next| visit(next, graph, way, done)) {
            return true;
        }
        done.insert(at.clone());
        way.pop();
        false
    }
    let (mut way, mut done) = (Vec::new(), BTreeSet::new());
    graph.keys().any(|module| visit(module, graph, &mut way, &mut done));
    way.iter().map(|module| format!("crate::{}", module.join("::"))).collect()
}

#[test]
fn no_module_uses_the_one_that_it_is_part_of() {
    for (crate_, modules) in CRATES {
        let graph = graph(crate_);
        assert!(graph.len() > modules, "{} modules", graph.len());
        for (module, uses) in &graph {
            let above = uses.iter().find(|it| module.starts_with(it));
            assert!(above.is_none(), "{} uses {}", module.join("::"), above.unwrap().join("::"));
        }
    }
}

#[test]
fn modules_form_no_ring() {
    for (crate_, _) in CRATES {
        let graph = graph(crate_);
        assert_eq!(ring(&graph), Vec::<String>::new());
        // Nor do the folders, each taken as one.
        let mut folders = Graph::new();
        let top = |module: &Module| module.iter().take(1).cloned().collect::<Module>();
        for (module, uses) in &graph {
            folders.entry(top(module)).or_default().extend(uses.iter().map(top));
        }
        for (module, uses) in &mut folders {
            uses.remove(module);
        }
        assert_eq!(ring(&folders), Vec::<String>::new());
    }
}

#[test]
fn lists_of_paths_are_taken_apart() {
    let module = vec!["a".to_owned(), "b".to_owned()];
    let text = "use super::{c::{self, D as E}, f::*};\nuse crate::g;\n super::super::h()";
    let mut found: Vec<String> = paths(text, &module).iter().map(|path| path.join("::")).collect();
    found.sort();
    assert_eq!(found, ["a::c", "a::c::D", "a::f::*", "g", "h"]);
}
