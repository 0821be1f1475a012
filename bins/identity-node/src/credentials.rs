//! What the node is told of credentials and pods, brought to whoever keeps something for them.

use identity_broker::{Backend, Clock, Manager, Notice};
use identity_core::{
    assign::{self, StatusTarget},
    lookup::{CredentialSource, FederatedSubject},
    runtime::{executor::Announcer, node::News, token_request::TokenRequests},
};
use tokio::sync::{broadcast, mpsc};
use tracing::{debug, info, warn};

/// News of pods and identities for the tokens kept for them, until nobody has any.
pub(crate) async fn keep_up<B: Backend, C: Clock>(
    mut news: mpsc::Receiver<News>,
    tokens: Manager<B, C>,
    assertions: Option<TokenRequests>,
) {
    while let Some(news) = news.recv().await {
        match news {
            News::PodGone(uid) => {
                tokens.pod_gone(&uid).await;
                if let Some(assertions) = &assertions {
                    assertions.forget(&uid);
                }
            }
            News::IdentityGone(identity) => tokens.identity_gone(&identity).await,
            News::IdentityAssigned(identity) => {
                // Which pod's the token would be is only known when one asks.
                let of_pods = matches!(
                    &identity.credential,
                    CredentialSource::Federated(federation) if federation.subject == FederatedSubject::Pod
                );
                if !of_pods {
                    tokens.identity_assigned(&identity).await;
                }
            }
        }
    }
}

/// What people should know of credentials: a line of the log and an Event each, until there is nobody to tell of any.
pub(crate) async fn tell(mut notices: broadcast::Receiver<Notice>, events: Announcer) {
    loop {
        match notices.recv().await {
            Ok(notice) => {
                log(&notice);
                events.announce(event(&notice));
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                warn!(missed, "notices of credentials were left out: too many");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

fn log(notice: &Notice) {
    let (identity, reason, message) = (notice.identity(), notice.reason(), notice.message());
    let (namespace, name) = (&identity.namespace, &identity.name);
    match notice {
        // The token manager has said it where it happened.
        Notice::Refused { .. } => debug!(%namespace, identity = %name, reason, "{message}"),
        _ if notice.is_warning() => warn!(%namespace, identity = %name, reason, "{message}"),
        _ => info!(%namespace, identity = %name, reason, "{message}"),
    }
}

fn event(notice: &Notice) -> assign::Notice {
    let identity = notice.identity();
    assign::Notice {
        target: StatusTarget::Identity(identity.key()),
        uid: (!identity.uid.is_empty()).then(|| identity.uid.to_string()),
        warning: notice.is_warning(),
        grant: None,
        reason: notice.reason().to_owned(),
        message: notice.message(),
    }
}

#[cfg(test)]
mod tests {
    use identity_core::lookup::ObjectRef;

    use super::*;

    #[test]
    fn an_event_is_of_the_identity() {
        let identity = ObjectRef { namespace: "team".into(), name: "sp".into(), uid: "u".into(), generation: 3 };
        let event = event(&Notice::CandidateRefused {
            identity: identity.clone(),
            origin: "Secret team/sp".into(),
            message: "AADSTS7000215".into(),
        });
        assert_eq!((event.target, event.uid.as_deref()), (StatusTarget::Identity(identity.key()), Some("u")));
        assert!(event.warning && event.reason == "CredentialRefused" && event.message.contains("AADSTS7000215"));
    }
}
