//! A connection that does not wait for ever on a peer that does not read, and that closes so that the peer gets to read
//! the last answer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// The most that is read and thrown away at the end, in bytes.
const MOST_DISCARDED: usize = 4 * 1024 * 1024;

/// Around a stream.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    /// How long a write may stand still.
    patience: Duration,
    /// How long the end may take.
    linger: Duration,
    standing: Option<Pin<Box<Sleep>>>,
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Patient<S> {
    pub(super) const fn new(stream: S, patience: Duration, linger: Duration) -> Self {
        Self { stream, patience, linger, standing: None, closing: None }
    }

    /// Starts the clock while a write stands still, stops it when it does not.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.standing = None;
            return poll;
        }
        let patience = self.patience;
        let standing = self.standing.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(standing.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.bounded(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, poll)
    }

    /// Says that nothing more comes, then reads until the peer says so, too: closing with unread input would reset the
    /// connection, and the peer would lose what it has not read yet (RFC 9112, section 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            let poll = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.bounded(cx, poll))?;
            this.closing = Some((Box::pin(sleep(this.linger)), 0));
        }
        let Some((until, discarded)) = &mut this.closing else { return Poll::Ready(Ok(())) };
        let mut space = [0; 8192];
        loop {
            if until.as_mut().poll(cx).is_ready() || *discarded > MOST_DISCARDED {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => *discarded += buffer.filled().len(),
                // The peer has closed, in one way or another.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (near, far) = duplex(16);
        let mut near = Patient::new(near, SECOND, SECOND);
        let begin = tokio::time::Instant::now();
        let error = near.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 1));
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_not() {
        let (near, mut far) = duplex(16);
        let mut near = Patient::new(near, SECOND, SECOND);
        let reader = tokio::spawn(async move {
            let mut read = 0;
            let mut space = [0; 16];
            while let Ok(n @ 1..) = far.read(&mut space).await {
                read += n;
                sleep(SECOND / 2).await;
            }
            read
        });
        near.write_all(&[0; 160]).await.unwrap();
        drop(near);
        assert_eq!(reader.await.unwrap(), 160);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_the_peer_but_not_for_long() {
        let (near, mut far) = duplex(1024);
        let mut near = Patient::new(near, SECOND, SECOND);
        let begin = tokio::time::Instant::now();
        // The peer is still sending, then closes.
        let peer = tokio::spawn(async move {
            far.write_all(&[0; 4096]).await.unwrap();
            drop(far);
        });
        near.shutdown().await.unwrap();
        assert!(begin.elapsed() < SECOND);
        peer.await.unwrap();

        let (near, _far) = duplex(1024);
        let mut near = Patient::new(near, SECOND, SECOND);
        let begin = tokio::time::Instant::now();
        near.shutdown().await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), 1);
    }
}
