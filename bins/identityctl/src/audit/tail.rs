//! `identityctl audit tail`.

use std::{collections::VecDeque, io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use identity_broker::audit::journal::{Item, Reader};

use super::{
    Files,
    show::{Printer, Record},
};
use crate::args::Tail;

/// How often to look for more.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn run(args: &Tail) -> anyhow::Result<ExitCode> {
    let mut printer = Printer::new(args.json);
    if args.follow {
        follow(args, &mut printer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let files = Files::find(&args.files)?;
    let mut last = VecDeque::new();
    files.lines(
        &mut last,
        |_, _| {},
        |last, line| {
            keep(last, line, args);
            Ok(true)
        },
    )?;
    print(&mut printer, &last)?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps the last lines that are asked for.
fn keep(last: &mut VecDeque<Vec<u8>>, line: &[u8], args: &Tail) {
    if args.lines == 0 || !Record::parse(line).is_some_and(|record| record.is(&args.filter)) {
        return;
    }
    if last.len() == args.lines {
        last.pop_front();
    }
    last.push_back(line.to_vec());
}

fn print(printer: &mut Printer, lines: &VecDeque<Vec<u8>>) -> anyhow::Result<bool> {
    for record in lines.iter().filter_map(|line| Record::parse(line)) {
        if !printer.print(&record)? {
            return Ok(false);
        }
    }
    printer.flush()
}

fn follow(args: &Tail, printer: &mut Printer) -> anyhow::Result<()> {
    let [directory] = &*args.files else { bail!("--follow needs the directory of the journal, and nothing else") };
    if !directory.is_dir() {
        bail!("--follow needs the directory of the journal: {} is none", directory.display());
    }
    let mut reader = Reader::new(directory, None);
    let mut last = VecDeque::new();
    let mut caught_up = false;
    loop {
        match reader.read().with_context(|| directory.display().to_string())? {
            Some(Item::Record(_, text)) => {
                let line = [text, b"\n"].concat();
                if !caught_up {
                    keep(&mut last, &line, args);
                } else if let Some(record) = Record::parse(&line).filter(|record| record.is(&args.filter))
                    && !printer.print(&record)?
                {
                    return Ok(());
                }
            }
            // Where the columns are, nothing else may be.
            Some(Item::Gap { from, to }) => writeln!(std::io::stderr(), "records {from} to {to} are gone")?,
            Some(Item::Another) => writeln!(std::io::stderr(), "another journal begins")?,
            None if caught_up => std::thread::sleep(PAUSE),
            None => {
                caught_up = true;
                if !print(printer, &last)? {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Audit, Command};

    #[test]
    fn the_last_that_are_asked_for() {
        let words = ["identityctl", "audit", "tail", "d", "-n", "2"];
        let Command::Audit(Audit::Tail(args)) = Args::parse_from(words).command else { unreachable!() };
        let mut last = VecDeque::new();
        for seq in 0..9 {
            let kind = if seq % 2 == 0 { "token" } else { "stop" };
            keep(&mut last, format!("{{\"seq\":{seq},\"kind\":\"{kind}\"}}\n").as_bytes(), &args);
        }
        let seqs: Vec<_> = last.iter().map(|line| line[7]).collect();
        assert_eq!(seqs, b"68");
    }
}
