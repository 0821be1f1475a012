//! From `main` to the work and back to an exit code.

use std::{future::Future, io::Write as _, process::ExitCode};

use crate::{LogArgs, Traces, cores};

/// What `--version` says.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Installs the log and `traces` and runs `work` on a runtime with `threads` worker threads. A failure is the last line on standard
/// error and exit code 1. (Wrong flags are clap's, exit code 2.) No core is left of the process.
pub fn run(
    log: &LogArgs,
    mut traces: Traces,
    threads: usize,
    work: impl Future<Output = anyhow::Result<()>>,
) -> ExitCode {
    let cores = cores::forbid();
    // An allocator that is given a huge page for a few kilobytes triples what a node with 250 pods needs. Where the kernel
    // does not know the flag (before Linux 3.15) it only costs memory.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let log = log.install(traces.layer());
    if let Err(error) = cores {
        tracing::warn!(%error, "should this process crash, a core with credentials and tokens may be left of it");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads.max(1)).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                // A log that cannot be changed is no reason to stop.
                tokio::spawn(async move {
                    if let Err(error) = log.follow_signals().await {
                        tracing::warn!("{error:#}");
                    }
                });
                let sending = traces.start()?;
                let result = work.await;
                sending.stop().await;
                result
            });
            // What still blocks (a file that hangs) must not hold up the exit.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
