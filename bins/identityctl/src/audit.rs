//! Reading an audit journal: is it whole, what does it say, what comes in.

mod grant;
mod show;
mod tail;
mod verify;

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use identity_broker::audit::journal;

use crate::args::Audit;

/// The longest line that is read at once: records are some kilobytes.
const LONGEST: u64 = 1 << 20;

pub(crate) fn run(audit: &Audit) -> anyhow::Result<ExitCode> {
    match audit {
        Audit::Verify(args) => verify::run(args),
        Audit::Show(args) => show::run(args),
        Audit::Tail(args) => tail::run(args),
    }
}

/// The files of a journal in the order in which they were written.
struct Files {
    paths: Vec<PathBuf>,
    /// All that there are.
    complete: bool,
}

impl Files {
    /// Directories stand for the files in them; `-` for standard input.
    fn find(given: &[PathBuf]) -> anyhow::Result<Self> {
        let complete = matches!(given, [one] if one.is_dir());
        let mut paths = Vec::new();
        for path in given {
            if !path.is_dir() {
                paths.push(path.clone());
                continue;
            }
            let numbers = journal::files(path).with_context(|| path.display().to_string())?;
            if numbers.is_empty() {
                bail!("{}: there is no journal here (no {})", path.display(), journal::file_name(1));
            }
            paths.extend(numbers.into_iter().map(|number| path.join(journal::file_name(number))));
        }
        // Shells sort `*.jsonl` by name, which is the order; who names them otherwise may mean it.
        let number = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).and_then(journal::file_number);
        if paths.iter().all(|path| number(path).is_some()) {
            paths.sort_by_key(number);
        }
        Ok(Self { paths, complete })
    }

    /// Gives each line with its end to `each`, after the name of its file to `begin`.
    fn lines<C>(
        &self,
        context: &mut C,
        begin: impl Fn(&mut C, &Path),
        mut each: impl FnMut(&mut C, &[u8]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut line = Vec::new();
        for path in &self.paths {
            let named = || path.display().to_string();
            begin(context, path);
            let file: Box<dyn io::Read> = if path.as_os_str() == "-" {
                Box::new(io::stdin())
            } else {
                Box::new(File::open(path).with_context(named)?)
            };
            let mut reader = BufReader::with_capacity(1 << 18, file);
            loop {
                line.clear();
                if (&mut reader).take(LONGEST).read_until(b'\n', &mut line).with_context(named)? == 0 {
                    break;
                }
                if !each(context, &line)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
