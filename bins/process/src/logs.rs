//! The log on standard error: text for people, JSON for machines.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt};

use crate::stderr::Stderr;

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line for a person.
    Text,
    /// One JSON object in each line.
    Json,
}

/// Flags of the log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log (standard error)")]
pub struct LogArgs {
    /// Lines for people, or JSON objects
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "ENTRA_POD_IDENTITY_LOG_FORMAT")]
    pub log_format: Format,
    /// error, warn, info, debug, trace; or by module: info,identity_broker=debug. Audit records (target `audit`) are always
    /// written
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

impl LogArgs {
    /// The last word on a target counts: no level silences the audit.
    fn directives(&self) -> String {
        format!("kube=off,hyper_util=warn,{},audit=info", self.log_level)
    }

    /// Makes this the log of the process. Once.
    pub fn install(&self) {
        // The kube client says each request at info and each failure that is ours to judge at error.
        let filter = EnvFilter::new(self.directives());
        let log = fmt().with_env_filter(filter).with_writer(Stderr::new()).with_target(true).log_internal_errors(false);
        match self.log_format {
            Format::Json => log.json().flatten_event(true).init(),
            Format::Text => log.with_ansi(io::stderr().is_terminal()).init(),
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
    fn a_level_that_is_none_is_refused() {
        assert!(filter("info,identity_broker=debug").is_ok());
        for wrong in ["identity_broker=loud", "warning", "inof", "", "info,identity_broker"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }
}
