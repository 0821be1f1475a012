//! The flags.

use std::path::PathBuf;

use anyhow::Context as _;
use http::Uri;

use super::{post::Headers, sampler::Sampler};

/// Where spans go, and which.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct OtlpArgs {
    /// Send the spans of requests to the collector at this http or https URL, to which /v1/traces is added. Off by default
    #[arg(long = "otlp-endpoint", value_name = "URL", value_parser = endpoint, env = "ENTRA_POD_IDENTITY_OTLP_ENDPOINT")]
    endpoint: Option<Uri>,

    /// Headers for the collector, such as its key: one `Name: value` in each line. Read again for each batch; only with https,
    /// or to this host itself
    #[arg(
        long = "otlp-headers-file",
        value_name = "FILE",
        requires = "endpoint",
        env = "ENTRA_POD_IDENTITY_OTLP_HEADERS_FILE"
    )]
    headers_file: Option<PathBuf>,

    /// Which part of all requests has its spans sent, from 0 to 1; what a pod sends along counts for nothing here
    #[arg(
        long = "otlp-sample-ratio", value_name = "RATIO", default_value_t = 1.0, value_parser = ratio,
        env = "ENTRA_POD_IDENTITY_OTLP_SAMPLE_RATIO"
    )]
    sample_ratio: f64,

    /// The most traces in a second (1 to 1000), whatever the ratio; one address has at most a quarter of them
    #[arg(
        long = "otlp-traces-per-second", value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000),
        env = "ENTRA_POD_IDENTITY_OTLP_TRACES_PER_SECOND"
    )]
    traces_per_second: u32,
}

/// Where to, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoint: Uri,
    pub(super) headers: Option<Headers>,
}

impl OtlpArgs {
    pub(super) fn target(&self) -> Option<Target> {
        let headers = self.headers_file.clone().map(Headers::new);
        Some(Target { endpoint: self.endpoint.clone()?, headers })
    }

    pub(super) fn sampler(&self) -> Sampler {
        Sampler::new(self.sample_ratio, self.traces_per_second)
    }
}

impl Target {
    /// What cannot work is said at the start. The headers must be readable then.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Some(headers) = &self.headers else { return Ok(()) };
        let here = matches!(self.endpoint.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if self.endpoint.scheme_str() != Some("https") && !here {
            anyhow::bail!(
                "--otlp-headers-file: what is in it would be sent in the clear; --otlp-endpoint must be https"
            );
        }
        headers.read().context("--otlp-headers-file").map(drop)
    }
}

fn endpoint(text: &str) -> Result<Uri, String> {
    const FORM: &str = "http(s)://HOST[:PORT][/PATH], such as http://localhost:4318; no query, no user";
    let uri: Uri = text.parse().map_err(|error| format!("{error}; {FORM}"))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let named = !authority.is_empty() && !authority.contains('@') && uri.query().is_none();
    if !matches!(uri.scheme_str(), Some("http" | "https")) || !named {
        return Err(FORM.to_owned());
    }
    let scheme = uri.scheme_str().unwrap_or_default();
    let path = uri.path().trim_end_matches('/');
    format!("{scheme}://{authority}{path}/v1/traces").parse().map_err(|error| format!("{error}; {FORM}"))
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| "from 0 to 1, such as 0.1".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Daemon {
        #[command(flatten)]
        otlp: OtlpArgs,
    }

    fn parse(flags: &[&str]) -> Result<OtlpArgs, clap::Error> {
        Daemon::try_parse_from(["daemon"].iter().chain(flags)).map(|daemon| daemon.otlp)
    }

    #[test]
    fn nothing_is_sent_unless_somebody_says_where() {
        let none = parse(&[]).unwrap();
        assert!(none.target().is_none());
        for (flag, sent) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("https://otel.example/ingest/", "https://otel.example/ingest/v1/traces"),
        ] {
            assert_eq!(parse(&["--otlp-endpoint", flag]).unwrap().target().unwrap().endpoint, sent);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flags in [
            &["--otlp-endpoint", "localhost:4318"][..],
            &["--otlp-endpoint", "/v1/traces"],
            &["--otlp-endpoint", "grpc://collector:4317"],
            &["--otlp-endpoint", "https://user:key@collector"],
            &["--otlp-endpoint", "https://collector/?key=1"],
            &["--otlp-headers-file", "headers"],
            &["--otlp-sample-ratio", "1.1"],
            &["--otlp-sample-ratio", "-0.1"],
            &["--otlp-sample-ratio", "NaN"],
            &["--otlp-traces-per-second", "0"],
            &["--otlp-traces-per-second", "1001"],
        ] {
            assert_eq!(parse(flags).unwrap_err().exit_code(), 2, "{flags:?}");
        }
    }

    #[test]
    fn a_key_does_not_leave_in_the_clear() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("headers");
        let check = |endpoint: &str| {
            let target = parse(&["--otlp-endpoint", endpoint, "--otlp-headers-file", file.to_str().unwrap()]);
            target.unwrap().target().unwrap().check().map_err(|error| format!("{error:#}"))
        };
        assert!(check("https://collector").unwrap_err().contains("No such file"));
        std::fs::write(&file, "api-key: abcdefgh\n").unwrap();
        check("https://collector").unwrap();
        check("http://127.0.0.1:4318").unwrap();
        assert!(check("http://collector:4318").unwrap_err().contains("in the clear"));
        std::fs::write(&file, "api-key abcdefgh\n").unwrap();
        let error = check("https://collector").unwrap_err();
        assert!(error.contains("line 1") && !error.contains("abcdefgh"), "{error}");
    }
}
