//! What no file of the repository may contain.

use std::path::Path;

use anyhow::bail;

use crate::{files, paths, run::Cmd, term};

/// A source file beyond this many lines gets a warning: it holds more than one concept.
const LONG: usize = 600;

/// Files that git tracks, relative to the root.
pub(super) fn tracked(root: &Path) -> anyhow::Result<Vec<String>> {
    let list = Cmd::new("git").args(["ls-files", "-z"]).dir(root).text()?;
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

pub(super) fn check() -> anyhow::Result<()> {
    let root = paths::root();
    let home = paths::variable("HOME").unwrap_or_default();
    // A root like `/` or a home like `/root` would be found in innocent text.
    let machine: Vec<String> =
        [root.display().to_string(), home].into_iter().filter(|path| path.matches('/').count() > 1).collect();
    let mut found = Vec::new();
    for name in tracked(&root)? {
        // Not text: nothing to look at. Removed but not yet committed: neither.
        let Ok(text) = std::fs::read_to_string(root.join(&name)) else { continue };
        found.extend(problems(&name, &text, &machine));
        let lines = text.lines().count();
        if lines > LONG && Path::new(&name).extension().is_some_and(|extension| extension == "rs") {
            term::step(format_args!("warning: {name} has {lines} lines"));
        }
    }
    let lock = files::read(&root.join("tools/sdk/node/package-lock.json"))?;
    if lock.contains("\"resolved\"") {
        found.push(
            "tools/sdk/node/package-lock.json names a registry host: make it with --omit-lockfile-registry-resolved"
                .into(),
        );
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

/// What is wrong with a file: paths of this machine, marks of an unresolved merge.
fn problems(name: &str, text: &str, machine: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", number + 1);
        for path in machine {
            let names_it = line.match_indices(path.as_str()).any(|(start, _)| {
                line[start + path.len()..].chars().next().is_none_or(|next| !next.is_alphanumeric() && next != '-')
            });
            if names_it {
                found.push(format!("{at}: names a path of this machine ({path})"));
            }
        }
        if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
            found.push(format!("{at}: an unresolved merge"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::problems;

    #[test]
    fn finds_machine_paths_with_file_and_line_but_not_longer_names() {
        let machine = ["/home/someone".to_owned()];
        assert_eq!(
            problems("a.md", "fine\nsee /home/someone/x\n", &machine),
            ["a.md:2: names a path of this machine (/home/someone)"]
        );
        assert!(problems("a.md", "see /home/someoneelse/x and ~/x\n", &machine).is_empty());
        assert_eq!(problems("a.md", "<<<<<<< HEAD\n", &machine).len(), 1);
    }
}
