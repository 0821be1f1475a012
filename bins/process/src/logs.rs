//! The log on standard error: text for people, JSON for machines. How much it says can be changed while the daemon runs.

use std::{
    cmp::Ordering,
    io::{self, IsTerminal as _},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{Dispatch, Subscriber, info};
use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, fmt, layer::SubscriberExt as _, registry::LookupSpan, reload,
    util::SubscriberInitExt as _,
};

use crate::{stderr::Stderr, traces::SpanLayer};

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line for a person.
    Text,
    /// One JSON object in each line.
    Json,
}

/// Flags of the log.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Log (standard error)")]
pub struct LogArgs {
    /// Lines for people, or JSON objects
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "ENTRA_POD_IDENTITY_LOG_FORMAT")]
    pub log_format: Format,
    /// error, warn, info, debug, trace; or by module: info,identity_broker=debug. Audit records (target `audit`) are always
    /// written. SIGUSR1 makes a running daemon say more, SIGUSR2 less
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "ENTRA_POD_IDENTITY_LOG_LEVEL", value_parser = filter)]
    pub log_level: String,
}

fn filter(text: &str) -> Result<String, String> {
    for directive in text.split(',').map(str::trim) {
        // A bare word that is no level would be taken for a module of which all is wanted, and of the rest nothing.
        if directive.is_empty() || !directive.contains('=') && directive.parse::<LevelFilter>().is_err() {
            return Err(format!("`{directive}` is no level: error, warn, info, debug, trace, off, or MODULE=LEVEL"));
        }
    }
    EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Replaces what the log lets through; false: it could not.
type Reload = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// The log of the process, as far as it can be changed.
pub(crate) struct Log {
    levels: Levels,
    reload: Reload,
}

impl LogArgs {
    /// The last word on a target counts: no level silences the audit.
    fn directives(&self) -> String {
        // The kube client says each request at info and each failure that is ours to judge at error.
        // An answer that it cannot read it quotes, and that may be a Secret.
        format!("kube=off,hyper_util=warn,{},kube_client::client=off,audit=info", self.log_level)
    }

    /// Makes this the log of the process, and `spans` what takes its spans. Once.
    pub(crate) fn install(&self, spans: Option<SpanLayer>) -> Log {
        let (dispatch, reload) = self.dispatch(spans);
        dispatch.init();
        Log { levels: Levels::new(self), reload }
    }

    fn dispatch(&self, spans: Option<SpanLayer>) -> (Dispatch, Reload) {
        let filter = EnvFilter::new(self.directives());
        if let Some(spans) = spans {
            // Each has its own filter: what is sent as a span does not depend on what is logged, nor the log on that.
            let (filter, handle) = reload::Layer::new(filter);
            let both = tracing_subscriber::registry().with(spans).with(self.lines().with_filter(filter));
            return (both.into(), Box::new(move |filter| handle.reload(filter).is_ok()));
        }
        let (filter, handle) = reload::Layer::new(filter);
        let log = tracing_subscriber::registry().with(filter).with(self.lines());
        (log.into(), Box::new(move |filter| handle.reload(filter).is_ok()))
    }

    /// What writes lines.
    fn lines<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let lines = fmt::layer().with_writer(Stderr::new()).with_target(true).log_internal_errors(false);
        match self.log_format {
            Format::Json => lines.json().flatten_event(true).boxed(),
            Format::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        }
    }
}

/// What the log says now: as the flag has it, and so many steps more or less.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Levels {
    args: LogArgs,
    configured: LevelFilter,
    now: LevelFilter,
}

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

impl Levels {
    fn new(args: &LogArgs) -> Self {
        // Of several words without a module the last one counts; without any, modules that are not named say nothing.
        let words = args.log_level.split(',').map(str::trim).filter(|word| !word.contains('='));
        let configured = words.filter_map(|word| word.parse().ok()).next_back().unwrap_or(LevelFilter::OFF);
        Self { args: args.clone(), configured, now: configured }
    }

    /// One step more, or less.
    fn step(&mut self, more: bool) {
        let at = LEVELS.iter().position(|level| *level == self.now).unwrap_or_default();
        let next = if more { at + 1 } else { at.saturating_sub(1) };
        self.now = LEVELS[next.min(LEVELS.len() - 1)];
    }

    fn directives(&self) -> String {
        let args = &self.args;
        let LogArgs { log_format, .. } = *args;
        let log_level = match self.now.cmp(&self.configured) {
            Ordering::Equal => args.log_level.clone(),
            // Less means less, of the modules that are named as well.
            Ordering::Less => self.now.to_string(),
            Ordering::Greater => format!("{},{}", args.log_level, self.now),
        };
        LogArgs { log_format, log_level }.directives()
    }
}

impl Log {
    /// Says more on SIGUSR1, less on SIGUSR2, until the process ends.
    pub(crate) async fn follow_signals(mut self) -> anyhow::Result<()> {
        let mut more = signal(SignalKind::user_defined1()).context("cannot listen for SIGUSR1")?;
        let mut less = signal(SignalKind::user_defined2()).context("cannot listen for SIGUSR2")?;
        loop {
            let up = tokio::select! {
                Some(()) = more.recv() => true,
                Some(()) = less.recv() => false,
                else => return Ok(()),
            };
            self.levels.step(up);
            let level = self.levels.now;
            let signal = if up { "SIGUSR1" } else { "SIGUSR2" };
            // Said while it is still heard.
            if !up {
                info!(signal, %level, "log level");
            }
            if !(self.reload)(EnvFilter::new(self.levels.directives())) {
                info!(signal, "the log level could not be changed");
            } else if up {
                info!(signal, %level, "log level");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_level_silences_the_audit() {
        for level in ["error", "off", "info,audit=off", "audit=error"] {
            let log = LogArgs { log_format: Format::Text, log_level: level.to_owned() };
            let subscriber = fmt().with_env_filter(EnvFilter::new(log.directives())).with_writer(io::sink).finish();
            tracing::subscriber::with_default(subscriber, || {
                assert!(tracing::enabled!(target: "audit", tracing::Level::INFO), "{level}");
            });
        }
    }

    #[test]
    fn signals_step_through_the_levels_and_never_silence_the_audit() {
        let enabled = |levels: &Levels, target: &str| {
            let subscriber = fmt().with_env_filter(EnvFilter::new(levels.directives())).with_writer(io::sink).finish();
            tracing::subscriber::with_default(subscriber, || match target {
                "audit" => tracing::enabled!(target: "audit", tracing::Level::INFO),
                "quiet" => tracing::enabled!(target: "quiet", tracing::Level::DEBUG),
                "kube" => tracing::enabled!(target: "kube", tracing::Level::ERROR),
                _ => tracing::enabled!(target: "other", tracing::Level::DEBUG),
            })
        };
        let args = LogArgs { log_format: Format::Text, log_level: "info,quiet=warn".to_owned() };
        let mut levels = Levels::new(&args);
        assert!(!enabled(&levels, "other"));
        levels.step(true);
        assert_eq!(levels.now, LevelFilter::DEBUG);
        assert!(enabled(&levels, "other") && !enabled(&levels, "quiet"), "what the flag says of a module holds");
        assert!(!enabled(&levels, "kube"));
        levels.step(true);
        levels.step(true);
        assert_eq!(levels.now, LevelFilter::TRACE, "and no further");
        for _ in 0..8 {
            levels.step(false);
            assert!(enabled(&levels, "audit"), "{}", levels.directives());
        }
        assert_eq!(levels.now, LevelFilter::OFF);
        for _ in 0..3 {
            levels.step(true);
        }
        assert_eq!(levels.directives(), args.directives(), "back where it was");
        let only_modules = LogArgs { log_format: Format::Text, log_level: "identity_broker=debug".to_owned() };
        assert_eq!(Levels::new(&only_modules).configured, LevelFilter::OFF);
    }

    #[test]
    fn the_client_never_quotes_what_it_cannot_read() {
        for level in ["trace", "trace,kube=trace", "kube_client=trace", "kube_client::client=warn"] {
            let log = LogArgs { log_format: Format::Text, log_level: level.to_owned() };
            let subscriber = fmt().with_env_filter(EnvFilter::new(log.directives())).with_writer(io::sink).finish();
            tracing::subscriber::with_default(subscriber, || {
                assert!(!tracing::enabled!(target: "kube_client::client", tracing::Level::WARN), "{level}");
            });
        }
    }

    #[test]
    fn what_is_logged_and_which_spans_are_taken_are_apart() {
        use tracing::Level;

        let log = LogArgs { log_format: Format::Json, log_level: "info".to_owned() };
        let spans = || -> SpanLayer {
            let broker = tracing_subscriber::filter::FilterFn::new(|metadata| {
                metadata.is_span() && metadata.target() == "identity_broker"
            });
            fmt::layer().with_writer(io::sink).with_filter(broker).boxed()
        };
        for (spans, taken) in [(None, false), (Some(spans()), true)] {
            let (dispatch, reload) = log.dispatch(spans);
            tracing::dispatcher::with_default(&dispatch, || {
                let span = || tracing::debug_span!(target: "identity_broker", "request").is_disabled();
                let line = || tracing::event_enabled!(target: "identity_broker", Level::DEBUG);
                let other = || tracing::debug_span!(target: "other", "span").is_disabled();
                assert_eq!((span(), line(), other()), (!taken, false, true), "at info");
                assert!(reload(EnvFilter::new("debug")));
                assert_eq!((span(), line(), other()), (false, true, false), "at debug");
                assert!(reload(EnvFilter::new("off,audit=info")));
                assert_eq!((span(), line(), other()), (!taken, false, true), "at off");
                assert!(tracing::event_enabled!(target: "audit", Level::INFO));
            });
        }
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        assert!(filter("info,identity_broker=debug").is_ok());
        for wrong in ["identity_broker=loud", "warning", "inof", "", "info,identity_broker"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }
}
