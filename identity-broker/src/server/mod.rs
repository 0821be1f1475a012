//! The HTTP server: accepts, checks where each connection was going, serves within limits, stops gracefully.

mod original;
mod peers;
mod stream;

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use original::{Kernel, OriginalDestination};

use self::{
    peers::{Peers, Place},
    stream::Patient,
};
use crate::{
    audit::AuditSink,
    clock::Clock,
    decide::Decide,
    endpoint::{Broker, JSON, SERVER_NAME},
    metrics::{Metrics, Turned},
    tokens::Tokens,
};

/// Limits of the server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The metadata address: only connections that were going there are served.
    pub metadata: SocketAddrV4,
    /// For the head of a request, and for a kept-alive connection without one.
    pub header_timeout: Duration,
    /// For an answer that the peer does not read.
    pub write_timeout: Duration,
    /// How long the peer may take to read the last answer and to close.
    pub linger: Duration,
    /// The largest head of a request, in bytes (at least 8192).
    pub max_head: usize,
    /// The most connections.
    pub max_connections: usize,
    /// The most connections of one address.
    pub max_connections_per_peer: usize,
    /// How long connections may take to end when the server stops.
    pub drain: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            metadata: SocketAddrV4::new(std::net::Ipv4Addr::new(169, 254, 169, 254), 80),
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(1),
            max_head: 24 * 1024,
            max_connections: 4096,
            max_connections_per_peer: 128,
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves until `shutdown`, then lets requests under way end, for at most [`ServerConfig::drain`].
pub async fn serve<D, T, A, C>(
    listener: TcpListener,
    original: impl OriginalDestination,
    broker: Arc<Broker<D, T, A, C>>,
    config: ServerConfig,
    shutdown: CancellationToken,
) where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    let metrics = Arc::clone(broker.metrics());
    let peers = Peers::new(config.max_connections, config.max_connections_per_peer);
    let graceful = GracefulShutdown::new();
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.header_timeout).max_buf_size(config.max_head.max(8192));
    let (mut said, mut troubled) = (Sparing::default(), Sparing::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer went away: neither ends the server, nor may it spin.
                if let Some(since) = troubled.turn(broker.now()) {
                    tracing::warn!(%error, since_the_last_line = since, "connections cannot be accepted");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let place = match peers.enter(peer.ip()) {
            Ok(place) => place,
            Err(turned) => {
                metrics.turned_away(turned);
                tracing::trace!(%peer, reason = turned.as_str(), "turned away");
                continue;
            }
        };
        let open = Open::new(place, &metrics);
        if !going_to(&config, &original, &stream) {
            metrics.turned_away(Turned::Direct);
            if let Some(since) = said.turn(broker.now()) {
                tracing::warn!(
                    %peer, since_the_last_line = since,
                    "refused a connection that was not redirected from the metadata address"
                );
            }
            let cut = cut.clone();
            tasks.spawn(async move {
                tokio::select! { () = turn_away(stream) => {}, () = cut.cancelled() => {} }
                drop(open);
            });
            continue;
        }
        // Answers are small and waited for.
        let _ = stream.set_nodelay(true);
        let connection = broker.connection_to(peer, SocketAddr::V4(config.metadata));
        let pause = connection.pause;
        tracing::trace!(%peer, ?pause, "accepted");
        let service = TowerToHyperService::new(broker.stack(connection));
        let stream = Patient::new(stream, config.write_timeout, config.linger);
        let served = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let cut = cut.clone();
        tasks.spawn(async move {
            let served = async {
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                served.await
            };
            tokio::select! {
                done = served => if let Err(error) = done { tracing::debug!(%peer, %error, "connection") },
                () = cut.cancelled() => {}
            }
            tracing::trace!(%peer, "closed");
            drop(open);
        });
    }
    drop(listener);
    tasks.close();
    let drained = async {
        graceful.shutdown().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(config.drain, drained).await.is_err() {
        cut.cancel();
        tasks.wait().await;
    }
}

/// A line of the log that pods can cause: at most one each second. The metric counts all.
#[derive(Debug, Default)]
struct Sparing {
    last: Option<Timestamp>,
    kept_back: u64,
}

impl Sparing {
    /// Whether to say it now, and how many were kept back before.
    fn turn(&mut self, now: Timestamp) -> Option<u64> {
        let recently =
            self.last.is_some_and(|last| now >= last && now.duration_since(last) < SignedDuration::from_secs(1));
        if recently {
            self.kept_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.kept_back))
    }
}

/// A connection that counts.
struct Open {
    _place: Place,
    metrics: Arc<Metrics>,
}

impl Open {
    fn new(place: Place, metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self { _place: place, metrics: Arc::clone(metrics) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

fn going_to(config: &ServerConfig, original: &impl OriginalDestination, stream: &TcpStream) -> bool {
    match original.original_destination(stream) {
        Ok(destination) => destination == SocketAddr::V4(config.metadata),
        Err(error) => {
            // The connection is refused either way; a kernel without connection tracking would refuse all.
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(%error, "the original destination of a connection could not be read");
            }
            false
        }
    }
}

/// Says why, and closes. No request is read for its meaning.
async fn turn_away(mut stream: TcpStream) {
    let body = r#"{"error":"access_denied","error_description":"This port serves only what is redirected from the metadata address"}"#;
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: {JSON}\r\nServer: {SERVER_NAME}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        // Something of the request has to be there, or some clients take the answer for none.
        let mut discarded = [0; 4096];
        let _ = stream.read(&mut discarded).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread input would reset the connection and lose the answer.
        for _ in 0..16 {
            if stream.read(&mut discarded).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), exchange).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_can_cause_is_said_once_a_second() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let mut said = Sparing::default();
        let told: Vec<_> = [0, 1, 999, 1000, 1001, 500, 3000].map(|millis| said.turn(at(millis))).into();
        assert_eq!(
            told,
            [Some(0), None, None, Some(2), None, Some(1), Some(0)],
            "a clock set back does not silence it"
        );
    }
}
