//! What a client cannot do by itself, whatever the endpoint answers. Each entry is verified: the client must fail in exactly
//! this way, so that it is noticed when it no longer does.

use super::{cells::Cell, clients::Client};
use crate::application::SdkAnswer;

/// How a limit shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// The client has no way to ask so.
    Unsupported,
    /// Its error has these words.
    Error(&'static str),
}

impl Shows {
    /// Whether it shows in an answer.
    pub fn find(self, answer: &SdkAnswer) -> bool {
        match self {
            Self::Unsupported => answer.unsupported.is_some(),
            Self::Error(words) => {
                answer.token.is_none() && answer.error.as_deref().is_some_and(|error| error.contains(words))
            }
        }
    }
}

/// A limit of a client.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Where.
    pub client: Client,
    /// In which cell.
    pub cell: Cell,
    /// How it shows.
    pub shows: Shows,
    /// Why.
    pub reason: &'static str,
}

const NO_DEFAULT: &str = "the library has no `DefaultAzureCredential`";

const fn limit(client: Client, cell: Cell, shows: Shows, reason: &'static str) -> Limit {
    Limit { client, cell, shows, reason }
}

/// All that are known.
pub const LIMITS: &[Limit] = &[
    limit(Client::GoAdal, Cell::ObjectId, Shows::Unsupported, "the library has no option for an object id"),
    limit(Client::PythonMsal, Cell::Default, Shows::Unsupported, NO_DEFAULT),
    limit(Client::NodeMsal, Cell::Default, Shows::Unsupported, NO_DEFAULT),
    limit(Client::GoAdal, Cell::Default, Shows::Unsupported, NO_DEFAULT),
    limit(Client::JavaMsal, Cell::Default, Shows::Unsupported, NO_DEFAULT),
    limit(Client::RustIdentity, Cell::Default, Shows::Unsupported, NO_DEFAULT),
    limit(Client::Curl, Cell::Default, Shows::Unsupported, NO_DEFAULT),
    limit(
        Client::PythonMsal,
        Cell::Throttled,
        Shows::Error("service_unavailable"),
        "the library asks once and leaves it to the application to ask again",
    ),
    limit(
        Client::Curl,
        Cell::Throttled,
        Shows::Error("503"),
        "curl asks once; with `--retry 3` it asks again, after the time that `Retry-After` names",
    ),
];

/// Where a client says something of its own in place of the endpoint's words.
const OWN_WORDS: &[(Client, &[Cell], &str)] = &[(
    Client::RustIdentity,
    &[Cell::NoIdentity, Cell::Several, Cell::WrongId],
    "The requested identity has not been assigned to this resource",
)];

/// What a client says in place of the endpoint's words, if it does.
pub fn own_words(client: Client, cell: Cell) -> Option<&'static str> {
    OWN_WORDS.iter().find(|(known, cells, _)| *known == client && cells.contains(&cell)).map(|(_, _, words)| *words)
}

/// The limit that explains a cell, with its place in [`LIMITS`].
pub fn of(client: Client, cell: Cell) -> Option<(usize, &'static Limit)> {
    LIMITS.iter().enumerate().find(|(_, limit)| limit.client == client && limit.cell == cell)
}
