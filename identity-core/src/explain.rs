//! Why a decision came out as it did.
//!
//! The code that decides takes a [`Recorder`]; with [`Silent`] every call compiles to nothing, with [`Tree`] the same run
//! leaves its reasons behind. So an explanation cannot differ from the decision it explains.

use std::fmt;

use serde::Serialize;

/// What a line says about its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// A remark.
    Note,
}

impl From<bool> for Verdict {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Note => "-",
        }
    }
}

/// A statement, whether it holds, and what it rests on.
///
/// Prints as an indented tree with one column of verdicts; serialises as nested objects.
///
/// ```
/// use identity_core::explain::{Recorder, Tree, Verdict};
///
/// let mut tree = Tree::new("pod demo/web-0");
/// tree.open(|| "binding demo/b selects it".into());
/// tree.check(true, || "label aadpodidbinding=demo".into());
/// tree.close(Verdict::Yes);
/// assert_eq!(tree.finish(Verdict::Yes).to_string(), "\
/// yes  pod demo/web-0
/// yes    binding demo/b selects it
/// yes      label aadpodidbinding=demo
/// ");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether the statement holds.
    pub verdict: Verdict,
    /// The statement.
    pub text: String,
    /// What it rests on, in the order in which it was looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<Explanation>,
}

/// Takes note of the reasons while something is decided.
pub trait Recorder {
    /// Begins a statement that others will support.
    fn open(&mut self, text: impl FnOnce() -> String);
    /// Ends the innermost statement.
    fn close(&mut self, verdict: Verdict);
    /// A statement of its own.
    fn line(&mut self, verdict: Verdict, text: impl FnOnce() -> String);

    /// A remark.
    fn note(&mut self, text: impl FnOnce() -> String) {
        self.line(Verdict::Note, text);
    }

    /// A statement of its own; answers `holds`.
    fn check(&mut self, holds: bool, text: impl FnOnce() -> String) -> bool {
        self.line(holds.into(), text);
        holds
    }
}

/// Records nothing, at no cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Recorder for Silent {
    #[inline(always)]
    fn open(&mut self, _: impl FnOnce() -> String) {}
    #[inline(always)]
    fn close(&mut self, _: Verdict) {}
    #[inline(always)]
    fn line(&mut self, _: Verdict, _: impl FnOnce() -> String) {}
}

/// Records an [`Explanation`].
#[derive(Clone, Debug)]
pub struct Tree {
    root: Explanation,
    open: Vec<Explanation>,
}

impl Tree {
    /// A tree below one statement.
    pub fn new(text: impl Into<String>) -> Self {
        Self { root: Explanation { verdict: Verdict::Note, text: text.into(), because: Vec::new() }, open: Vec::new() }
    }

    /// The whole, with the verdict on its root.
    pub fn finish(mut self, verdict: Verdict) -> Explanation {
        while !self.open.is_empty() {
            self.close(Verdict::Note);
        }
        self.root.verdict = verdict;
        self.root
    }

    fn push(&mut self, line: Explanation) {
        self.open.last_mut().unwrap_or(&mut self.root).because.push(line);
    }
}

impl Recorder for Tree {
    fn open(&mut self, text: impl FnOnce() -> String) {
        self.open.push(Explanation { verdict: Verdict::Note, text: text(), because: Vec::new() });
    }

    fn close(&mut self, verdict: Verdict) {
        if let Some(mut line) = self.open.pop() {
            line.verdict = verdict;
            self.push(line);
        }
    }

    fn line(&mut self, verdict: Verdict, text: impl FnOnce() -> String) {
        self.push(Explanation { verdict, text: text(), because: Vec::new() });
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(line: &Explanation, depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            writeln!(f, "{:<4} {:indent$}{}", line.verdict.word(), "", line.text, indent = depth * 2)?;
            line.because.iter().try_for_each(|child| write(child, depth + 1, f))
        }
        write(self, 0, f)
    }
}
