//! Where a connection was going before netfilter redirected it.

use std::{io, net::SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Looks up a connection's original destination. The seam for tests that have no netfilter.
pub trait OriginalDestination: Send + Sync + 'static {
    /// Where the peer dialled.
    fn original_destination(&self, stream: &TcpStream) -> io::Result<SocketAddr>;
}

/// Asks the kernel's connection tracking (`SO_ORIGINAL_DST`). A connection that was not redirected answers its own
/// local address, or an error where connections are not tracked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

impl OriginalDestination for Kernel {
    fn original_destination(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        SockRef::from(stream)
            .original_dst_v4()?
            .as_socket()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the original destination is not an IP address"))
    }
}
