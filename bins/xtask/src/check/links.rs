//! Relative links in Markdown lead to files that exist; every page of the book is in its summary.

use std::path::Path;

use anyhow::bail;

use super::hygiene::tracked;
use crate::{files, paths};

pub(super) fn check() -> anyhow::Result<()> {
    let root = paths::root();
    let mut broken = Vec::new();
    let pages: Vec<String> = tracked(&root)?
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "md"))
        .filter(|name| root.join(name).exists())
        .collect();
    let mut linked_from_summary = Vec::new();
    let summary = pages.iter().find(|name| name.ends_with("SUMMARY.md"));
    for name in &pages {
        let text = files::read(&root.join(name))?;
        let directory = Path::new(name).parent().unwrap_or(Path::new(""));
        for (line, target) in targets(&text) {
            let path = directory.join(&target);
            if !root.join(&path).exists() {
                broken.push(format!("{name}:{line}: there is no {}", path.display()));
            } else if summary == Some(name) {
                linked_from_summary.push(root.join(&path).canonicalize().unwrap_or_default());
            }
        }
    }
    if let Some(summary) = summary {
        let book = Path::new(summary).parent().unwrap_or(Path::new(""));
        for name in pages.iter().filter(|name| *name != summary && Path::new(name).starts_with(book)) {
            if !linked_from_summary.contains(&root.join(name).canonicalize().unwrap_or_default()) {
                broken.push(format!("{name}: not in {summary}, so not in the book"));
            }
        }
    }
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

/// Targets of inline links with the line they are on: relative ones, without fragment, outside code blocks.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number + 1, target.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::targets;

    #[test]
    fn finds_relative_targets_only() {
        let text = "[a](b.md#part) and [c](https://example.com/x)\n```\n[no](code.md)\n```\n[d](../e)[f](#here)\n";
        assert_eq!(targets(text), [(1, "b.md".to_owned()), (5, "../e".to_owned())]);
    }
}
