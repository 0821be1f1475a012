//! Trying a credential at Entra, for nobody in particular.

use std::sync::Arc;

use futures::future::BoxFuture;
use identity_core::lookup::Identity;
use tokio::time::{Instant, timeout};

use super::{
    DEFAULT_AUTHORITY, Failure, Upstream,
    shared::{Missed, Run},
};
use crate::{
    credentials::{Credential, Tried, Try},
    tokens::{Ask, Freshness, Urgency},
};

/// Resource managers by cloud: every tenant has one, and every application gets a token for it.
const RESOURCE_MANAGERS: [(&str, &str); 3] = [
    ("microsoftonline.us", "https://management.usgovcloudapi.net"),
    ("microsoftonline.cn", "https://management.chinacloudapi.cn"),
    ("chinacloudapi.cn", "https://management.chinacloudapi.cn"),
];

/// What a credential is tried for when nothing is known to work: the resource manager of the identity's cloud.
fn default_resource(identity: &Identity) -> &'static str {
    let authority = identity.authority.as_deref().unwrap_or(DEFAULT_AUTHORITY).trim().trim_end_matches('/');
    let host = authority.strip_prefix("https://").unwrap_or(authority).to_ascii_lowercase();
    let known = RESOURCE_MANAGERS.iter().find(|(cloud, _)| host.ends_with(cloud));
    known.map_or("https://management.azure.com", |(_, resource)| resource)
}

impl Try for Upstream {
    fn try_it<'a>(
        &'a self,
        identity: &'a Arc<Identity>,
        credential: &'a Credential,
        resource: Option<&'a str>,
    ) -> BoxFuture<'a, Tried> {
        Box::pin(async move {
            let application = match self.application(identity) {
                Ok(application) => application,
                Err(error) => return Tried::Refused { error, spreads: false },
            };
            // Something else serves meanwhile, or nobody is served: pods that have no token come first.
            let mut interest = Ask::constant(Freshness::Any, Urgency::Early).interest;
            let limit = self.config.total_timeout;
            let mut run = Run {
                identity,
                resource: resource.unwrap_or_else(|| default_resource(identity)),
                freshness: Freshness::Any,
                interest: &mut interest,
                deadline: Instant::now() + limit,
            };
            let tried = self.entra(&mut run, &application, credential, 0);
            match timeout(limit + self.config.turn_timeout, tried).await {
                Ok(Ok(_token)) => Tried::Proven,
                Ok(Err(Missed::Failed(Failure::Credential { error, spreads }, _))) => Tried::Refused { error, spreads },
                Ok(Err(Missed::Failed(Failure::Permanent(error), _))) => Tried::Otherwise(error),
                Ok(Err(Missed::Failed(Failure::Transient { message, .. }, _))) => Tried::Unclear(message),
                Ok(Err(Missed::Abandoned)) | Err(_) => Tried::Unclear("Entra was not asked in time".to_owned()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use identity_crd::IdentityType;

    use super::*;

    #[test]
    fn the_resource_manager_of_each_cloud() {
        for (authority, expected) in [
            (None, "https://management.azure.com"),
            (Some("https://login.microsoftonline.com/"), "https://management.azure.com"),
            (Some("https://login.microsoftonline.us/"), "https://management.usgovcloudapi.net"),
            (Some("https://LOGIN.partner.microsoftonline.cn"), "https://management.chinacloudapi.cn"),
            (Some("https://login.chinacloudapi.cn/"), "https://management.chinacloudapi.cn"),
            (Some("https://login.private.example/"), "https://management.azure.com"),
        ] {
            let mut identity = crate::credentials::testing::identity(IdentityType::ServicePrincipal);
            identity.authority = authority.map(Into::into);
            assert_eq!(default_resource(&identity), expected, "{authority:?}");
        }
    }
}
