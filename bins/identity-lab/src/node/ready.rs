//! Whether what a lab needs is there, and whether what it started is ready.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use super::Error;
use crate::process::{self, Process};

/// How long a process may take to be ready.
pub(super) const READY: Duration = Duration::from_mins(1);
/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(40);

/// Waits until `is_ready`, with an error when the process ends first or time runs out.
pub(super) async fn wait<F: Future<Output = bool>>(
    process: &mut Process,
    is_ready: impl Fn() -> F,
) -> Result<(), Error> {
    let ready = async {
        loop {
            if let Some(status) = process.exited() {
                return Err(format!("it ended ({status})"));
            }
            if is_ready().await {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let result =
        tokio::time::timeout(READY, ready).await.unwrap_or_else(|_| Err(format!("not after {} s", READY.as_secs())));
    result.map_err(|why| Error::NotReady {
        name: process.name().to_owned(),
        why,
        log: process.log().to_owned(),
        words: process.last_words(),
    })
}

/// `GET /readyz` on loopback: an error unless the answer is 200. Blocking; runs inside the node's network namespace.
pub(super) fn probe(port: u16) -> std::io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if head.ends_with(b" 200") { Ok(()) } else { Err(std::io::Error::other("not ready")) }
}

/// The programs that a lab cannot do without.
pub(super) fn tools() -> Result<(), Error> {
    for (program, argument, package) in [("ip", "-V", "iproute2"), ("setpriv", "--version", "util-linux")] {
        if let Err(process::Error::Spawn { source, .. }) = process::run(program, &[argument]) {
            return Err(Error::Missing { program, package, source });
        }
    }
    Ok(())
}
