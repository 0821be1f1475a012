//! One batch of spans to a collector: OTLP/HTTP with protobuf (opentelemetry-proto, `docs/specification.md`).

use std::{fs::File, io::Read as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustls::ClientConfig;
use tokio::sync::Semaphore;

use super::args::Target;

/// For one exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const ANSWER: usize = 64 * 1024;
/// The largest file with headers, in bytes.
const HEADERS: u64 = 16 * 1024;

/// A file with headers, whose values are secrets.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    file: PathBuf,
    /// One reads at a time: a file whose file system hangs takes one thread of those that may block, not all of them, which
    /// others need (the journal's Events, names of hosts).
    turn: Arc<Semaphore>,
}

impl Headers {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Reads it. What it says is in no error.
    pub(super) fn read(&self) -> anyhow::Result<HeaderMap> {
        let what = || self.file.display().to_string();
        let mut text = String::new();
        let file = File::open(&self.file).with_context(what)?;
        file.take(HEADERS).read_to_string(&mut text).with_context(what)?;
        headers(&text).map_err(|line| anyhow::anyhow!("line {line} is not `Name: value`")).with_context(what)
    }

    /// The same apart from those who must not wait; or why not, for the log.
    async fn read_apart(&self) -> Result<HeaderMap, String> {
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            return Err(format!("{} is still being read: its file system does not answer", self.file.display()));
        };
        let this = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let headers = this.read();
            // Also when nobody waits for it any more: then it is over all the same.
            drop(turn);
            headers
        });
        match reading.await {
            Ok(headers) => headers.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("{} could not be read", self.file.display())),
        }
    }
}

/// Or which line is wrong.
fn headers(text: &str) -> Result<HeaderMap, usize> {
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = line.split_once(':').and_then(|(name, value)| {
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            Some((name.trim().parse::<HeaderName>().ok()?, value))
        });
        let (name, value) = parsed.ok_or(number + 1)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// How sending a batch ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Posted {
    /// Taken, but for so many spans.
    Taken { rejected: u64 },
    /// It is worth trying again, after that time if the collector said one.
    Later { why: String, after: Option<Duration> },
    /// It is not.
    Refused { why: String },
}

/// Sends to one collector.
#[derive(Clone, Debug)]
pub(super) struct Post {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    target: Target,
}

impl Post {
    pub(super) fn new(target: Target, tls: ClientConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(Duration::from_secs(3)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(30)).pool_max_idle_per_host(1);
        Self { client: builder.build(connector), target }
    }

    pub(super) const fn endpoint(&self) -> &Uri {
        &self.target.endpoint
    }

    /// Sends an encoded `ExportTraceServiceRequest`. Bounded in time; follows no redirect.
    pub(super) async fn send(&self, body: Bytes) -> Posted {
        let later = |why: &str| Posted::Later { why: why.to_owned(), after: None };
        tokio::time::timeout(TIMEOUT, self.exchange(body)).await.unwrap_or_else(|_| later("no answer in time"))
    }

    async fn exchange(&self, body: Bytes) -> Posted {
        let later = |why: String| Posted::Later { why, after: None };
        let headers = match &self.target.headers {
            None => HeaderMap::new(),
            Some(file) => match file.read_apart().await {
                Ok(headers) => headers,
                Err(why) => return later(format!("--otlp-headers-file: {why}")),
            },
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.target.endpoint.clone();
        *request.headers_mut() = headers;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let answer = match self.client.request(request).await {
            Ok(answer) => answer,
            Err(error) => {
                return later(if error.is_connect() { "no connection" } else { "the connection broke" }.into());
            }
        };
        let status = answer.status();
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let after = after.map(|seconds: u64| Duration::from_secs(seconds.min(30)));
        let read = Limited::new(answer.into_body(), ANSWER).collect().await.map(http_body_util::Collected::to_bytes);
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Posted::Later { why: format!("it answered {status}"), after },
            status if status.is_success() => {
                let answer = read.ok().and_then(|read| ExportTraceServiceResponse::decode(read).ok());
                let partial = answer.and_then(|answer| answer.partial_success);
                Posted::Taken { rejected: partial.map_or(0, |part| part.rejected_spans.max(0).unsigned_abs()) }
            }
            status => Posted::Refused { why: format!("it answered {status}") },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::FutureExt as _;
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[tokio::test]
    async fn a_file_that_hangs_takes_one_thread() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("headers");
        // Whoever opens it to read waits for one who writes.
        mkfifo(&file, Mode::S_IRWXU).unwrap();
        let headers = Headers::new(file.clone());
        assert!(headers.read_apart().now_or_never().is_none(), "given up, as after the time for an exchange");
        for _ in 0..3 {
            let answer = headers.read_apart().now_or_never().expect("no other thread waits for it");
            assert!(answer.unwrap_err().contains("still being read"));
        }
        File::options().write(true).open(&file).unwrap().write_all(b"api-key: abc\n").unwrap();
        // When the file system answers again, so does this.
        let ended =
            tokio::time::timeout(Duration::from_secs(20), headers.turn.acquire()).await.expect("read in the end");
        drop(ended);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "api-key: abc\n").unwrap();
        assert_eq!(headers.read_apart().await.unwrap()["api-key"], "abc");
    }
}
