//! The objects of the kit's lab, in the order in which they appear.

use std::{fmt::Write as _, path::Path};

use super::clients::Client;
use crate::files;

/// A managed identity.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Name of the `AzureIdentity`.
    pub name: &'static str,
    /// Azure resource id.
    pub resource_id: &'static str,
    /// Client id.
    pub client_id: &'static str,
    /// Object id.
    pub object_id: &'static str,
}

/// The identity that every pod has first.
pub const FIRST: Identity = Identity {
    name: "first",
    resource_id: "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/kit/providers/Microsoft.ManagedIdentity/userAssignedIdentities/first",
    client_id: "aaaaaaaa-0001-4000-8000-000000000000",
    object_id: "bbbbbbbb-0001-4000-8000-000000000000",
};

/// The identity that joins it. Its binding allows only the audiences below.
pub const SECOND: Identity = Identity {
    name: "second",
    resource_id: "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/kit/providers/Microsoft.ManagedIdentity/userAssignedIdentities/second",
    client_id: "aaaaaaaa-0002-4000-8000-000000000000",
    object_id: "bbbbbbbb-0002-4000-8000-000000000000",
};

/// What is asked for by client id.
pub const BY_CLIENT_ID: &str = "https://by-client-id.example";
/// What is asked for by resource id.
pub const BY_RESOURCE_ID: &str = "https://by-resource-id.example";
/// What is asked for by object id.
pub const BY_OBJECT_ID: &str = "https://by-object-id.example";

const TENANT: &str = "11111111-1111-4111-8111-111111111111";

/// The namespace of all objects.
pub const NAMESPACE: &str = "kit";

/// A client's pod, as `identity-lab exec` wants it.
pub fn pod(client: Client) -> String {
    format!("{NAMESPACE}/{}", client.pod())
}

/// The pods, with nothing bound to them. Azure knows both identities from the start.
///
/// # Errors
/// Of the file system.
pub fn fill(directory: &Path) -> anyhow::Result<()> {
    let mut pods = String::new();
    for client in Client::ALL {
        let _ = write!(
            pods,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: {NAMESPACE}, labels: {{aadpodidbinding: kit}}}}\n\
             spec: {{containers: [{{name: main, image: example.invalid/app}}]}}\n",
            client.pod()
        );
    }
    files::replace(&directory.join("pods.yaml"), &pods)?;
    let mut lab = "managedIdentities:\n".to_owned();
    for identity in [FIRST, SECOND] {
        let _ = writeln!(
            lab,
            "- {{resourceId: {}, clientId: {}, objectId: {}, tenantId: {TENANT}}}",
            identity.resource_id, identity.client_id, identity.object_id
        );
    }
    files::replace(&directory.join("lab.yaml"), &lab)
}

/// An `AzureIdentity`.
pub fn identity(identity: Identity) -> String {
    let Identity { name, resource_id, client_id, object_id } = identity;
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{type: 0, resourceID: {resource_id}, clientID: {client_id}, objectID: {object_id}}}\n"
    )
}

/// The binding of an identity to all pods.
pub fn binding(identity: Identity, audiences: &[&str]) -> String {
    let name = identity.name;
    let audiences = if audiences.is_empty() { String::new() } else { format!(", audiences: {audiences:?}") };
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{azureIdentity: {name}, selector: kit{audiences}}}\n"
    )
}
