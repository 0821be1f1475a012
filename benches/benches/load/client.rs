//! As little of an HTTP client as a load generator can do with: what it costs is not what is measured.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

/// Longer is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a connection from `source`; `abort`: closing resets it, so that ports do not run out.
pub(crate) async fn connect(target: SocketAddr, source: Option<Ipv4Addr>, abort: bool) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    if abort {
        socket.set_zero_linger()?;
    }
    socket.set_nodelay(true)?;
    tokio::time::timeout(PATIENCE, socket.connect(target)).await?
}

/// Opens a connection from inside a network namespace. Not on a thread of the runtime: that one would stay there.
pub(crate) fn connect_within(netns: &std::path::Path, target: SocketAddr, source: Ipv4Addr) -> io::Result<TcpStream> {
    let file = File::open(netns)?;
    let opened = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SockAddr::from(SocketAddr::from((source, 0))))?;
        socket.connect(&SockAddr::from(target))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    });
    let socket = opened.join().map_err(|_| io::Error::other("the thread panicked"))??;
    TcpStream::from_std(socket.into())
}

/// Sends `request` and reads the answer into `buffer`; returns its status and where its body begins.
pub(crate) async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> io::Result<(u16, usize)> {
    buffer.clear();
    stream.write_all(request).await?;
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((status, body, length)) = head(buffer)
            && buffer.len() >= body + length
        {
            return Ok((status, body));
        }
    }
}

/// Status, start of the body, length of the body.
fn head(bytes: &[u8]) -> Option<(u16, usize, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let status = std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok()?;
    let length = bytes[..end].split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        let value = name.eq_ignore_ascii_case(b"content-length:").then_some(value)?;
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    });
    Some((status, end + 4, length.unwrap_or(0)))
}
