//! The API server, and whoever asks it.

use std::{collections::HashMap, future::Future, time::Duration};

use anyhow::Context as _;
use identity_core::runtime;
use identity_crd::{AzureIdentityBinding, AzureIdentityGrant};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use super::{
    args::ClusterArgs,
    trouble::{Trouble, of_status},
};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a change is tried anew because somebody else's came first: a grant has 16 approvals at most, and its status
/// changes twice.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);

const FIELD_MANAGER: &str = "identityctl";

pub(super) struct Cluster {
    client: Client,
    pub(super) namespace: String,
}

/// Whoever asks, as the API server knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Me {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

/// A binding, as far as may be known.
pub(super) enum Known {
    There(Box<AzureIdentityBinding>),
    Absent,
    /// One may not read bindings, and need not.
    Unreadable,
}

impl Known {
    pub(super) fn binding(&self) -> Option<&AzureIdentityBinding> {
        if let Self::There(binding) = self { Some(binding) } else { None }
    }
}

impl Cluster {
    /// Reads the configuration; asks nothing yet.
    pub(super) async fn open(args: &ClusterArgs) -> anyhow::Result<Self> {
        if let Some(directory) = &args.manifests {
            return Err(Trouble::refused(super::words::by_manifests(&directory.display().to_string())).into());
        }
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match (&args.kubeconfig, Kubeconfig::read()) {
            (Some(file), _) => {
                let named = || format!("--kubeconfig {}", file.display());
                let read = Kubeconfig::read_from(file).with_context(named)?;
                kube::Config::from_custom_kubeconfig(read, &options).await.with_context(named)?
            }
            (None, Ok(read)) => kube::Config::from_custom_kubeconfig(read, &options).await.context("kubeconfig")?,
            (None, Err(error)) => kube::Config::incluster().with_context(|| {
                format!("no kubeconfig ({error}), and this does not run in a cluster; name one (--kubeconfig FILE)")
            })?,
        };
        if let Some(user) = &args.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_uid = None;
            config.auth_info.impersonate_groups = (!args.as_group.is_empty()).then(|| args.as_group.clone());
            config.auth_info.impersonate_user_extra = None::<HashMap<_, _>>;
        }
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = runtime::client(config).context("cannot make a client of the API server")?;
        Ok(Self { client, namespace })
    }

    pub(super) async fn me(&self) -> anyhow::Result<Me> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = call(reviews.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
        let user = review.status.and_then(|status| status.user_info).unwrap_or_default();
        let name = user.username.filter(|name| !name.is_empty()).context("the API server does not say who you are")?;
        Ok(Me { name, groups: user.groups.unwrap_or_default() })
    }

    fn grants(&self) -> Api<AzureIdentityGrant> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) async fn create(&self, grant: &AzureIdentityGrant) -> Result<AzureIdentityGrant, Trouble> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        call(self.grants().create(&params, grant)).await
    }

    pub(super) async fn grant(&self, name: &str) -> Result<AzureIdentityGrant, Trouble> {
        call(self.grants().get(name)).await.map_err(|trouble| match trouble {
            Trouble::Refused { code: 404, text } if text.starts_with("there is no") => {
                Trouble::Refused { code: 404, text: format!("{text} in namespace {}", self.namespace) }
            }
            other => other,
        })
    }

    pub(super) async fn list(&self, everywhere: bool) -> Result<Vec<AzureIdentityGrant>, Trouble> {
        let api = if everywhere { Api::all(self.client.clone()) } else { self.grants() };
        listed(&api).await
    }

    /// All bindings; `None` if one may not read them.
    pub(super) async fn bindings(&self, everywhere: bool) -> Result<Option<Vec<AzureIdentityBinding>>, Trouble> {
        let api = if everywhere {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        };
        match listed(&api).await {
            Ok(all) => Ok(Some(all)),
            Err(trouble) if trouble.code() == Some(403) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    pub(super) async fn binding(&self, name: &str) -> Result<Known, Trouble> {
        let api = Api::namespaced(self.client.clone(), &self.namespace);
        match call(api.get(name)).await {
            Ok(binding) => Ok(Known::There(Box::new(binding))),
            Err(trouble) => match trouble.code() {
                Some(403) => Ok(Known::Unreadable),
                Some(404) => Ok(Known::Absent),
                _ => Err(trouble),
            },
        }
    }

    /// Changes the spec of a grant on the version that `next` has seen, again with a newer one if somebody else's change came
    /// first. `next` says what to write, or that nothing is.
    pub(super) async fn edit<T>(
        &self,
        name: &str,
        next: impl Fn(&AzureIdentityGrant) -> Result<Edit<T>, Trouble>,
    ) -> Result<(AzureIdentityGrant, T), Trouble> {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let mut refused = None;
        for attempt in 0..ATTEMPTS {
            let grant = self.grant(name).await?;
            let (spec, outcome) = match next(&grant)? {
                Edit::Nothing(outcome) => return Ok((grant, outcome)),
                Edit::Spec(spec, outcome) => (spec, outcome),
            };
            let meta = &grant.metadata;
            // Both must be those that were seen: the API server answers 409 otherwise.
            let change = serde_json::json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "spec": spec});
            match call(self.grants().patch(name, &params, &Patch::Merge(change))).await {
                Ok(changed) => return Ok((changed, outcome)),
                Err(trouble) if trouble.code() == Some(409) => refused = Some(trouble),
                Err(trouble) => return Err(trouble),
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
        let last = refused.map(|trouble| trouble.to_string()).unwrap_or_default();
        Err(Trouble::Failed(format!("others change {name} all the time ({last}); try again")))
    }
}

/// What to do to a grant.
pub(super) enum Edit<T> {
    /// Merge this into its spec.
    Spec(Value, T),
    /// It is so already.
    Nothing(T),
}

async fn listed<K>(api: &Api<K>) -> Result<Vec<K>, Trouble>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut params = ListParams::default().limit(500);
    let mut all = Vec::new();
    loop {
        let page = call(api.list(&params)).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// One call, bounded, its error in words.
async fn call<T>(future: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(of_status(&status)),
        Ok(Err(error)) => Err(Trouble::Failed(format!("{:#}", anyhow::Error::new(error).context("the API server")))),
        Err(_) => Err(Trouble::Failed(format!("the API server has not answered within {} s", PATIENCE.as_secs()))),
    }
}
