//! The body of an answer on its way to a pod.
//!
//! A task carries it from the service, a few pieces ahead of the pod and for a limited time: a pod that reads slowly, or not at
//! all, keeps neither the connection to the service nor its place. When the pod goes, the task ends.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use thiserror::Error;
use tokio::{sync::mpsc, time::Instant};

use super::turns::Place;

/// Pieces that may wait for the pod.
const AHEAD: usize = 4;

/// The body ends before its end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BodyError {
    /// The connection to the service broke.
    #[error("the node's metadata service broke off its answer")]
    Broken,
    /// Larger than is passed on.
    #[error("the node's metadata service's answer is too large to be passed on")]
    TooLarge,
    /// It took too long, on either side.
    #[error("the node's metadata service's answer could not be passed on in time")]
    Late,
}

enum Piece {
    Data(Bytes),
    End,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Carried {
    pieces: mpsc::Receiver<Result<Piece, BodyError>>,
    ended: bool,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "Data({})", data.len()),
            Self::End => f.write_str("End"),
        }
    }
}

/// Has `body` carried until `deadline`, at most `most` bytes of it. `place` is held as long.
pub(super) fn carry<B>(body: B, most: usize, deadline: Instant, place: Place) -> Carried
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let (pieces, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let carried = tokio::time::timeout_at(deadline, until_end(body, most, &pieces)).await;
        drop(place);
        // Nobody waits for room: there is some, or the pod does not read, or is gone.
        let _ = match carried {
            Ok(Ok(())) => return,
            Ok(Err(error)) => pieces.try_send(Err(error)),
            Err(_) => pieces.try_send(Err(BodyError::Late)),
        };
    });
    Carried { pieces: receiver, ended: false }
}

async fn until_end<B>(
    mut body: B,
    most: usize,
    pieces: &mpsc::Sender<Result<Piece, BodyError>>,
) -> Result<(), BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut left = most;
    loop {
        let frame = tokio::select! {
            biased;
            () = pieces.closed() => return Ok(()),
            frame = body.frame() => frame,
        };
        let piece = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    left = left.checked_sub(data.len()).ok_or(BodyError::TooLarge)?;
                    Piece::Data(data)
                }
                // Trailers are for the next hop.
                Err(_) => continue,
            },
            Some(Err(error)) => {
                tracing::debug!(%error, "the node's metadata service broke off its answer");
                return Err(BodyError::Broken);
            }
            None => Piece::End,
        };
        let end = matches!(piece, Piece::End);
        if pieces.send(Ok(piece)).await.is_err() || end {
            return Ok(());
        }
    }
}

impl Body for Carried {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Ok(Piece::Data(data))) => Some(Ok(Frame::data(data))),
            Some(Ok(Piece::End)) => {
                self.ended = true;
                None
            }
            Some(Err(error)) => {
                self.ended = true;
                Some(Err(error))
            }
            // The task is gone without a word: cut short, never taken for the end.
            None => {
                self.ended = true;
                Some(Err(BodyError::Late))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use http_body_util::StreamBody;

    use super::*;
    use crate::metadata::turns::{Shares, Turns};

    type Pieces = mpsc::UnboundedReceiver<Result<Frame<Bytes>, std::io::Error>>;

    /// A body whose pieces the test sends.
    fn body(
        mut pieces: Pieces,
    ) -> StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + Unpin> {
        StreamBody::new(futures::stream::poll_fn(move |cx| pieces.poll_recv(cx)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_does_not_read_keeps_nothing_and_is_told_that_something_is_missing() {
        for read_first in [0, 2] {
            let turns = Turns::new(Shares::GENERAL);
            let place = turns.take(&Arc::from("pod")).await.unwrap();
            let (sender, pieces) = mpsc::unbounded_channel();
            let mut carried = carry(body(pieces), 1000, Instant::now() + Duration::from_secs(30), place);
            for _ in 0..20 {
                sender.send(Ok(Frame::data(Bytes::from_static(b"piece")))).unwrap();
            }
            for _ in 0..read_first {
                assert!(carried.frame().await.unwrap().is_ok());
            }
            sender.closed().await;
            assert_eq!(turns.under_way(), 0);
            let mut rest = 0;
            let end = loop {
                match carried.frame().await {
                    Some(Ok(_)) => rest += 1,
                    other => break other.map(|end| end.map(drop)),
                }
            };
            assert_eq!((rest, end), (AHEAD, Some(Err(BodyError::Late))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_an_end_and_a_break_is_none() {
        let turns = Turns::new(Shares::GENERAL);
        for broken in [false, true] {
            let place = turns.take(&Arc::from("pod")).await.unwrap();
            let (sender, pieces) = mpsc::unbounded_channel();
            let carried = carry(body(pieces), 1000, Instant::now() + Duration::from_secs(30), place);
            sender.send(Ok(Frame::data(Bytes::from_static(b"piece")))).unwrap();
            if broken {
                sender.send(Err(std::io::Error::other("gone"))).unwrap();
            }
            drop(sender);
            let collected = carried.collect().await.map(http_body_util::Collected::to_bytes);
            assert_eq!(collected, if broken { Err(BodyError::Broken) } else { Ok(Bytes::from_static(b"piece")) });
        }
    }
}
