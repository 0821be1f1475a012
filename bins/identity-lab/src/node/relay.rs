//! The API server listens on the host's loopback; the node is another network. A socket bound inside the node's namespace but
//! held by a process outside carries connections across, under the same address, so that one kubeconfig serves both sides.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Opens the relay's socket; to be run inside the node's network namespace.
pub(super) fn bind(port: u16) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Carries every connection to the same port on this side, until the task is dropped. While `down` is true, connections are
/// closed and new ones too; `in_force` is told when it is so, and when it is so no more.
pub(super) async fn run(
    listener: std::net::TcpListener,
    port: u16,
    mut down: watch::Receiver<bool>,
    in_force: impl Fn(bool),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((mut inside, _)) = accepted else { continue };
                if *down.borrow() {
                    continue;
                }
                connections.spawn(async move {
                    if let Ok(mut outside) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
                        let _ = copy_bidirectional(&mut inside, &mut outside).await;
                    }
                });
            }
            Some(_) = connections.join_next() => {}
            changed = down.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let is_down = *down.borrow_and_update();
                if is_down {
                    connections.shutdown().await;
                }
                in_force(is_down);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn carries_until_told_otherwise() {
        // Both ends on one network need two ports, so the far end is another loopback address's port: bind it first.
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let relay = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
        relay.set_nonblocking(true).unwrap();
        let (fault, down) = watch::channel(false);
        let (told, mut in_force) = watch::channel(false);
        let tell = move |down| {
            told.send_replace(down);
        };
        let task = tokio::spawn(run(relay, port, down, tell));

        let mut client = TcpStream::connect(("127.0.0.2", port)).await.unwrap();
        let (mut peer, _) = server.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        peer.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");

        fault.send(true).unwrap();
        in_force.wait_for(|down| *down).await.unwrap();
        assert_eq!(client.read(&mut buffer).await.unwrap_or(0), 0, "an open connection is cut");
        let mut refused = TcpStream::connect(("127.0.0.2", port)).await.unwrap();
        assert_eq!(refused.read(&mut buffer).await.unwrap_or(0), 0, "a new one too");
        fault.send(false).unwrap();
        in_force.wait_for(|down| !*down).await.unwrap();
        let _again = TcpStream::connect(("127.0.0.2", port)).await.unwrap();
        server.accept().await.unwrap();
        drop(fault);
        task.await.unwrap().unwrap();
    }
}
