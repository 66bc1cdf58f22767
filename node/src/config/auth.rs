//! `[auth]`: whether clients of the gateway must say who they are, and whose tokens are accepted.

use quorate_endpoint::PageUrl;
use quorate_gateway::{GatewayConfig, HumanDuration};
use quorate_routing::identity::JwtRules;
use serde::Deserialize;
use std::path::PathBuf;

/// `[auth]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Whether a key or a token is asked for.
    pub mode: AuthMode,
    /// Tokens besides keys.
    pub jwt: Option<JwtConfig>,
}

/// Whether a key or a token is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// Unless the gateway listens on loopback only.
    #[default]
    Auto,
    /// Of everybody.
    Required,
    /// Of nobody.
    Off,
}

/// `[auth.jwt]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// The issuer's JSON Web Key Set: a file, or an http or https address.
    pub jwks: String,
    /// `iss` that tokens must have.
    #[serde(default)]
    pub issuer: Option<String>,
    /// One of these must be in `aud`.
    #[serde(default)]
    pub audience: Vec<String>,
    /// The claim that names the tenant.
    #[serde(default = "tenant_claim")]
    pub tenant_claim: String,
    /// A claim that makes a flow of its own inside the tenant, for example the user's.
    #[serde(default)]
    pub fairness_claim: Option<String>,
    /// Time between two looks at the key set.
    #[serde(default = "refresh")]
    pub refresh: HumanDuration,
    /// Certificate authority (PEM) for the address; the system's if it is not set.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

fn tenant_claim() -> String {
    "tenant".into()
}

fn refresh() -> HumanDuration {
    HumanDuration::secs(300)
}

/// Where a key set is.
#[derive(Clone, Debug)]
pub enum JwksPlace {
    /// A file.
    File(PathBuf),
    /// A page.
    Page(PageUrl),
}

impl AuthConfig {
    /// Checks what no single key shows.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> anyhow::Result<()> {
        let Some(jwt) = &self.jwt else { return Ok(()) };
        jwt.place()?;
        anyhow::ensure!(
            !jwt.tenant_claim.is_empty(),
            "auth.jwt.tenant_claim must not be empty"
        );
        anyhow::ensure!(
            jwt.refresh.0 >= std::time::Duration::from_secs(1),
            "auth.jwt.refresh must be at least 1s"
        );
        Ok(())
    }

    /// Whether the gateway asks who its clients are.
    pub fn is_required(&self, gateway: &GatewayConfig) -> bool {
        match self.mode {
            AuthMode::Required => true,
            AuthMode::Off => false,
            AuthMode::Auto => {
                let tls = gateway.tls.iter().flat_map(|tls| &tls.listen);
                gateway
                    .listen
                    .iter()
                    .chain(tls)
                    .any(|address| !address.ip().to_canonical().is_loopback())
            }
        }
    }
}

impl JwtConfig {
    /// Where the key set is.
    ///
    /// # Errors
    /// It is an address that cannot be used.
    pub fn place(&self) -> anyhow::Result<JwksPlace> {
        if !self.jwks.contains("://") {
            anyhow::ensure!(!self.jwks.is_empty(), "auth.jwt.jwks must not be empty");
            return Ok(JwksPlace::File(self.jwks.clone().into()));
        }
        let page = PageUrl::parse(&self.jwks)
            .map_err(|error| anyhow::anyhow!("auth.jwt.jwks {:?}: {error}", self.jwks))?;
        Ok(JwksPlace::Page(page))
    }

    /// What tokens must say.
    pub fn rules(&self) -> JwtRules {
        JwtRules {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            tenant_claim: self.tenant_claim.clone(),
            fairness_claim: self.fairness_claim.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn required(text: &str) -> bool {
        let config = Config::parse(text).unwrap();
        config.auth.is_required(&config.gateway)
    }

    #[test]
    fn keys_are_asked_for_where_others_can_connect() {
        for (text, expected) in [
            ("", true),
            ("[gateway]\nlisten = \"127.0.0.1:1\"", false),
            (
                "[gateway]\nlisten = [\"127.0.0.1:1\", \"[::1]:1\", \"127.9.9.9:1\"]",
                false,
            ),
            (
                "[gateway]\nlisten = [\"127.0.0.1:1\", \"10.0.0.1:1\"]",
                true,
            ),
            ("[gateway]\nlisten = \"[::]:1\"", true),
            ("[gateway]\nlisten = \"[::ffff:127.0.0.1]:1\"", false),
            (
                "[gateway]\nlisten = \"127.0.0.1:1\"\n[gateway.tls]\nlisten = \"0.0.0.0:2\"\ncert = \"c\"\nkey = \"k\"",
                true,
            ),
            ("[auth]\nmode = \"off\"", false),
            (
                "[auth]\nmode = \"required\"\n[gateway]\nlisten = \"127.0.0.1:1\"",
                true,
            ),
        ] {
            assert_eq!(required(text), expected, "{text}");
        }
    }

    #[test]
    fn key_sets_are_files_or_pages() {
        let jwt = |jwks: &str| {
            let text = format!("[auth.jwt]\njwks = {jwks:?}");
            Config::parse(&text).unwrap().auth
        };
        assert!(matches!(
            jwt("/etc/jwks.json").jwt.unwrap().place(),
            Ok(JwksPlace::File(_))
        ));
        let page = jwt("https://login.example.org/keys?x=1").jwt.unwrap();
        assert!(matches!(
            page.place(),
            Ok(JwksPlace::Page(page)) if page.path == "/keys?x=1" && page.target.tls
        ));
        assert!(jwt("ftp://h/x").check().is_err() && jwt("").check().is_err());
        assert!(Config::parse("[auth]\nmode = \"on\"").is_err());
        assert!(Config::parse("[auth.jwt]\nissuer = \"x\"").is_err());
    }
}
