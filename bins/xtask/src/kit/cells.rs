//! What each client is asked, and what is right.

use std::time::Duration;

use super::{clients::Client, limits, scene};
use crate::application::{Id, Kind, Question, SdkAnswer};

/// The longest that a client may take to be told that it gets nothing: the bound that this kit was built for.
pub const REFUSAL: Duration = Duration::from_secs(2);
/// Requests in which a refusal is accepted: a probe and the question itself. More are retries.
const REFUSAL_REQUESTS: u64 = 2;

/// A column of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// No identity is named; the pod has one.
    NoId,
    /// One of two identities, by client id.
    ClientId,
    /// The same by resource id.
    ResourceId,
    /// The same by object id.
    ObjectId,
    /// An id that nobody has.
    WrongId,
    /// None is named; the pod has two of equal weight.
    Several,
    /// The pod has no binding.
    NoIdentity,
    /// The audience is not allowed.
    Closed,
    /// The identity is assigned while the request waits.
    Assigned,
    /// The audience of Key Vault.
    Vault,
    /// `DefaultAzureCredential`.
    Default,
    /// Upstream throttles the first request.
    ThrottledOnce,
    /// Upstream throttles until the client was told so.
    Throttled,
    /// Upstream takes three seconds.
    Slow,
}

/// What a client is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// A token of the application with this client id.
    Token(&'static str),
    /// No token, at once, and the application reads these words of the endpoint.
    Refusal(&'static str),
}

impl Cell {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NoId,
        Self::ClientId,
        Self::ResourceId,
        Self::ObjectId,
        Self::WrongId,
        Self::Several,
        Self::NoIdentity,
        Self::Closed,
        Self::Assigned,
        Self::Vault,
        Self::Default,
        Self::ThrottledOnce,
        Self::Throttled,
        Self::Slow,
    ];

    /// Heading of its column.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoId => "no id",
            Self::ClientId => "client id",
            Self::ResourceId => "resource id",
            Self::ObjectId => "object id",
            Self::WrongId => "wrong id",
            Self::Several => "several",
            Self::NoIdentity => "no identity",
            Self::Closed => "closed",
            Self::Assigned => "assigned meanwhile",
            Self::Vault => "vault",
            Self::Default => "default credential",
            Self::ThrottledOnce => "upstream 429 once",
            Self::Throttled => "upstream 429 for a while",
            Self::Slow => "upstream slow",
        }
    }

    /// What happens in it, for the page.
    pub const fn story(self) -> &'static str {
        match self {
            Self::NoId => "the pod has one identity and the request names none: its token",
            Self::ClientId => {
                "the pod has two identities of equal weight and the request names one by client id: its token"
            }
            Self::ResourceId => "the same by Azure resource id",
            Self::ObjectId => "the same by object id",
            Self::WrongId => {
                "the request names a client id that the pod has not: refused (400) within 2 s, and not asked again"
            }
            Self::Several => "two identities of equal weight and none named: refused (400), as by the real endpoint",
            Self::NoIdentity => "no binding selects the pod: refused (400)",
            Self::Closed => "the binding does not allow the audience: refused (403)",
            Self::Assigned => {
                "the request arrives before the identity is assigned and waits; the token comes as soon as the assignment does"
            }
            Self::Vault => "a token for `https://vault.azure.net`",
            Self::Default => "`DefaultAzureCredential`, with nothing in the environment",
            Self::ThrottledOnce => {
                "the node's own endpoint throttles the first request (429): the client notices nothing"
            }
            Self::Throttled => {
                "it throttles for longer than the product waits for it: the client is told 503 with `Retry-After`, and asks again or gives up"
            }
            Self::Slow => "it answers after 3 s",
        }
    }

    /// What is right.
    pub const fn right(self) -> Right {
        match self {
            Self::ClientId | Self::ResourceId | Self::ObjectId => Right::Token(scene::SECOND.client_id),
            Self::WrongId | Self::NoIdentity => Right::Refusal("Identity not found"),
            Self::Several => Right::Refusal("Multiple user assigned identities exist"),
            // The binding that is in the way.
            Self::Closed => Right::Refusal("kit/second"),
            Self::NoId
            | Self::Assigned
            | Self::Vault
            | Self::Default
            | Self::ThrottledOnce
            | Self::Throttled
            | Self::Slow => Right::Token(scene::FIRST.client_id),
        }
    }

    /// What the token is to be for. Each cell has its own: clients keep tokens by resource, and so does the product.
    pub fn resource(self, client: Client) -> String {
        let word = match self {
            Self::Vault => return "https://vault.azure.net".to_owned(),
            Self::NoId => return "https://management.azure.com".to_owned(),
            Self::ClientId => return scene::BY_CLIENT_ID.to_owned(),
            Self::ResourceId => return scene::BY_RESOURCE_ID.to_owned(),
            Self::ObjectId => return scene::BY_OBJECT_ID.to_owned(),
            Self::Closed => return "https://graph.microsoft.com".to_owned(),
            Self::WrongId => "wrong-id",
            Self::Several => "several",
            Self::NoIdentity => "no-identity",
            Self::Assigned => "assigned",
            Self::Default => "default",
            Self::ThrottledOnce => "throttled-once",
            Self::Throttled => "throttled",
            Self::Slow => "slow",
        };
        // Upstream must be asked for each client: a token that another client got would hide the fault.
        format!("https://{word}.{}.example", client.pod())
    }

    /// The question.
    pub fn question(self, client: Client) -> Question {
        let second = scene::SECOND;
        let id = match self {
            // Closed to this audience is the second identity's binding.
            Self::ClientId | Self::Closed => Some(Id::ClientId(second.client_id.to_owned())),
            Self::ResourceId => Some(Id::ResourceId(second.resource_id.to_owned())),
            Self::ObjectId => Some(Id::ObjectId(second.object_id.to_owned())),
            Self::WrongId => Some(Id::ClientId("dddddddd-dead-4000-8000-000000000000".to_owned())),
            _ => None,
        };
        let kind = if self == Self::Default { Kind::Default } else { Kind::Managed };
        Question { kind, resource: self.resource(client), id }
    }
}

/// What a cell came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// As explained in [`limits::LIMITS`] (its index).
    Limit(usize),
    /// Neither.
    Fail(String),
}

/// A cell's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Result {
    /// What it came to.
    pub verdict: Verdict,
    /// From question to answer, as the application saw it.
    pub took: Duration,
    /// HTTP requests that left the pod.
    pub requests: u64,
}

/// Judges an answer.
pub fn judge(client: Client, cell: Cell, answer: &SdkAnswer, requests: u64) -> Result {
    let took = Duration::from_millis(answer.ms);
    let outcome = right(client, cell, answer, requests);
    let verdict = match (limits::of(client, cell), outcome) {
        (None, Ok(())) => Verdict::Pass,
        (None, Err(why)) => Verdict::Fail(why),
        (Some((index, limit)), Err(why)) => {
            if limit.shows.find(answer) {
                Verdict::Limit(index)
            } else {
                Verdict::Fail(format!("explained as \"{}\", but this is something else: {why}", limit.reason))
            }
        }
        (Some((_, limit)), Ok(())) => {
            Verdict::Fail(format!("explained as \"{}\", but it works now: take the explanation away", limit.reason))
        }
    };
    Result { verdict, took, requests }
}

fn right(client: Client, cell: Cell, answer: &SdkAnswer, requests: u64) -> std::result::Result<(), String> {
    if let Some(why) = &answer.unsupported {
        return Err(why.clone());
    }
    let took = Duration::from_millis(answer.ms);
    match cell.right() {
        Right::Token(application) => {
            let resource = cell.resource(client);
            let claims = answer.claims().map_err(|error| format!("{error:#}"))?;
            if claims.aud.trim_end_matches('/') != resource {
                return Err(format!("the audience is {}, not {resource}", claims.aud));
            }
            if claims.appid != application {
                return Err(format!("the application is {}, not {application}", claims.appid));
            }
            let expires_on = answer.expires_on.ok_or("the client does not say when the token ends")?;
            // Some count the lifetime from the first of their requests: that errs on the safe side by what the retries took.
            let took = i64::try_from(took.as_secs()).unwrap_or(i64::MAX);
            if expires_on > claims.exp + 5 || expires_on < claims.exp - 5 - took {
                return Err(format!("the client says that the token ends at {expires_on}, it ends at {}", claims.exp));
            }
            if cell == Cell::ThrottledOnce && requests != 1 {
                return Err(format!("asked {requests} times: the client noticed what the product is to bridge"));
            }
            Ok(())
        }
        Right::Refusal(words) => {
            if answer.token.is_some() {
                return Err("a token where none is due".to_owned());
            }
            let Some(error) = answer.error.as_deref().filter(|error| !error.is_empty()) else {
                return Err("neither a token nor an error".to_owned());
            };
            let words = limits::own_words(client, cell).unwrap_or(words);
            if !error.contains(words) {
                return Err(format!("the error does not say \"{words}\": {error}"));
            }
            if took >= REFUSAL {
                return Err(format!("refused after {} ms; the bound is {} ms", took.as_millis(), REFUSAL.as_millis()));
            }
            if requests > REFUSAL_REQUESTS {
                return Err(format!("asked {requests} times: a refusal was retried"));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    fn token(aud: &str, appid: &str) -> SdkAnswer {
        let payload = URL_SAFE_NO_PAD.encode(format!(r#"{{"tid":"t","aud":"{aud}","appid":"{appid}","exp":1000}}"#));
        SdkAnswer { token: Some(format!("e30.{payload}.s")), expires_on: Some(1002), ms: 30, ..SdkAnswer::default() }
    }

    fn error(text: &str, ms: u64) -> SdkAnswer {
        SdkAnswer { error: Some(text.to_owned()), ms, ..SdkAnswer::default() }
    }

    fn fails(result: &Result, with: &str) {
        assert!(matches!(&result.verdict, Verdict::Fail(why) if why.contains(with)), "{with}: {result:?}");
    }

    #[test]
    fn a_token_must_be_the_right_one() {
        let client = Client::GoIdentity;
        let vault = "https://vault.azure.net";
        let judge = |answer: &SdkAnswer| judge(client, Cell::Vault, answer, 1);
        assert_eq!(judge(&token(vault, scene::FIRST.client_id)).verdict, Verdict::Pass);
        fails(&judge(&token(vault, scene::SECOND.client_id)), "the application is");
        fails(&judge(&token("https://other", scene::FIRST.client_id)), "the audience is");
        fails(&judge(&error("no", 1)), "no");
        let mut wrong = token(vault, scene::FIRST.client_id);
        wrong.expires_on = Some(2000);
        fails(&judge(&wrong), "ends at 2000");
        wrong.expires_on = Some(990);
        fails(&judge(&wrong), "ends at 990");
        wrong.ms = 7000;
        assert_eq!(judge(&wrong).verdict, Verdict::Pass);
    }

    #[test]
    fn a_refusal_must_be_quick_and_final() {
        let judge = |answer: &SdkAnswer, requests| judge(Client::GoIdentity, Cell::WrongId, answer, requests);
        assert_eq!(judge(&error("Identity not found", 1999), 2).verdict, Verdict::Pass);
        fails(&judge(&error("Identity not found", 2000), 1), "the bound is 2000 ms");
        fails(&judge(&error("Identity not found", 5), 3), "retried");
        fails(&judge(&error("", 5), 1), "neither");
        fails(&judge(&error("failed", 5), 1), "does not say");
        fails(&judge(&token("a", "b"), 1), "none is due");
    }

    #[test]
    fn what_upstream_does_once_is_not_the_clients_business() {
        let (client, cell) = (Client::GoIdentity, Cell::ThrottledOnce);
        let answer = token(&cell.resource(client), scene::FIRST.client_id);
        assert_eq!(judge(client, cell, &answer, 1).verdict, Verdict::Pass);
        fails(&judge(client, cell, &answer, 2), "noticed");
    }

    #[test]
    fn a_client_with_words_of_its_own_must_use_them() {
        let judge = |text: &str| judge(Client::RustIdentity, Cell::WrongId, &error(text, 5), 1);
        assert_eq!(judge("The requested identity has not been assigned to this resource").verdict, Verdict::Pass);
        fails(&judge("Identity not found"), "does not say");
    }

    #[test]
    fn a_limit_must_show_itself_as_explained() {
        let (client, cell) = (Client::GoAdal, Cell::ObjectId);
        let unsupported = SdkAnswer { unsupported: Some("it cannot".to_owned()), ..SdkAnswer::default() };
        assert!(matches!(judge(client, cell, &unsupported, 0).verdict, Verdict::Limit(_)));
        fails(&judge(client, cell, &error("something", 5), 1), "something else");
        fails(&judge(client, cell, &token(scene::BY_OBJECT_ID, scene::SECOND.client_id), 1), "works now");
    }

    #[test]
    fn no_two_cells_of_a_client_ask_for_the_same_resource() {
        for client in Client::ALL {
            let resources: std::collections::BTreeSet<String> =
                Cell::ALL.iter().map(|cell| cell.resource(client)).collect();
            assert_eq!(resources.len(), Cell::ALL.len(), "{client:?}");
        }
    }
}
