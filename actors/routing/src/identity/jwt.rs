//! JSON Web Tokens: signature, issuer, audience and times. RFC 7515 to 7519.
//!
//! Only signatures of public keys are accepted (RS256, ES256, EdDSA), and a key only for the algorithm of its own type, so
//! that a token cannot choose how it is verified.

use super::table::Verifier;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// Keys of a set that are kept.
const MAX_KEYS: usize = 64;
/// Clocks of issuer and router may differ by this.
const LEEWAY_SECS: u64 = 60;
/// Longest value of a claim that names a tenant or a flow.
const MAX_CLAIM: usize = 128;

/// What a token must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRules {
    /// `iss`; `None`: any.
    pub issuer: Option<String>,
    /// One of these must be in `aud`; empty: not asked for.
    pub audience: Vec<String>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// A claim whose value is a flow of its own inside the tenant.
    pub fairness_claim: Option<String>,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not three parts of base64 with JSON in them.
    #[error("it is malformed")]
    Malformed,
    /// None of RS256, ES256, EdDSA.
    #[error("its algorithm is not accepted")]
    Algorithm,
    /// The issuer's set has no such key.
    #[error("its key is not known")]
    UnknownKey,
    /// Not signed by that key.
    #[error("its signature is wrong")]
    Signature,
    /// `exp` is missing or past.
    #[error("it has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("it is not valid yet")]
    NotYet,
    /// Another `iss`.
    #[error("it is from another issuer")]
    Issuer,
    /// Another `aud`.
    #[error("it is for another audience")]
    Audience,
    /// The claim that names the tenant is missing or no short text.
    #[error("it names no tenant")]
    NoTenant,
}

/// A set of keys that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// No JSON Web Key Set.
    #[error("it is no JSON Web Key Set: {0}")]
    Malformed(String),
    /// There is nothing in it to verify with.
    #[error("it has no key for RS256, ES256 or EdDSA signatures")]
    NoKeys,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// An issuer's public keys.
pub struct Jwks(Vec<Key>);

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|key| (&key.id, key.algorithm)))
            .finish()
    }
}

impl Jwks {
    /// Reads a set. Keys for other purposes and of other types are left out.
    ///
    /// # Errors
    /// [`JwksError`].
    pub fn parse(json: &str) -> Result<Self, JwksError> {
        let malformed = |error: serde_json::Error| JwksError::Malformed(error.to_string());
        // One key of a type that is not known here must not take the others with it.
        let mut set: Map<String, Value> = serde_json::from_str(json).map_err(malformed)?;
        let Some(Value::Array(keys)) = set.remove("keys") else {
            return Err(JwksError::Malformed("the list `keys` is missing".into()));
        };
        let keys: Vec<Key> = keys
            .into_iter()
            .filter_map(|key| {
                let one = serde_json::json!({ "keys": [key] });
                let set: JwkSet = serde_json::from_value(one).ok()?;
                key_of(set.keys.first()?)
            })
            .take(MAX_KEYS)
            .collect();
        if keys.is_empty() {
            return Err(JwksError::NoKeys);
        }
        Ok(Self(keys))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is always one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key_of(jwk: &jsonwebtoken::jwk::Jwk) -> Option<Key> {
    use jsonwebtoken::jwk::PublicKeyUse;
    if !matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    ) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let said = jwk.common.key_algorithm;
    let fits = match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        _ => KeyAlgorithm::EdDSA,
    };
    if said.is_some_and(|said| said != fits) {
        return None;
    }
    Some(Key {
        id: jwk.common.key_id.clone(),
        algorithm,
        key: DecodingKey::from_jwk(jwk).ok()?,
    })
}

/// Whether this is a token and no API key: three parts, the first of which begins as JSON objects do in base64.
pub(super) fn looks_like_jwt(shown: &str) -> bool {
    shown.starts_with("eyJ") && shown.bytes().filter(|b| *b == b'.').count() == 2
}

/// What a good token says, and how long it is good.
#[derive(Debug)]
pub(super) struct Claims {
    pub tenant: String,
    pub flow: Option<String>,
    /// Unix seconds, differences of clocks allowed for: good from the first on, until before the second.
    valid: (u64, u64),
}

impl Claims {
    #[cfg(test)]
    pub fn of_tenant(tenant: &str, from: u64, until: u64) -> Self {
        Self {
            tenant: tenant.to_owned(),
            flow: None,
            valid: (from, until),
        }
    }

    /// Checks the time only.
    pub fn check_time(&self, now_unix_ms: u64) -> Result<(), JwtError> {
        let (from, until) = self.valid;
        let now = now_unix_ms / 1000;
        if now >= until {
            Err(JwtError::Expired)
        } else if now < from {
            Err(JwtError::NotYet)
        } else {
            Ok(())
        }
    }
}

/// Checks a token of at most [`MAX_TOKEN`] bytes.
pub(super) fn verify(
    token: &str,
    verifier: &Verifier,
    now_unix_ms: u64,
) -> Result<Claims, JwtError> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| JwtError::Malformed)?;
    if !matches!(
        header.alg,
        Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA
    ) {
        return Err(JwtError::Algorithm);
    }
    let mut validation = Validation::new(header.alg);
    // Checked below, by the clock that the caller gives.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    let fitting = verifier.keys.0.iter().filter(|key| {
        key.algorithm == header.alg && (header.kid.is_none() || key.id == header.kid)
    });
    let mut result = Err(JwtError::UnknownKey);
    for key in fitting {
        match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation) {
            Ok(data) => {
                result = Ok(data.claims);
                break;
            }
            Err(error) => {
                result = Err(match error.kind() {
                    jsonwebtoken::errors::ErrorKind::InvalidSignature => JwtError::Signature,
                    _ => JwtError::Malformed,
                });
            }
        }
    }
    read(&result?, &verifier.rules, now_unix_ms)
}

fn read(
    claims: &Map<String, Value>,
    rules: &JwtRules,
    now_unix_ms: u64,
) -> Result<Claims, JwtError> {
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        // A NumericDate may have a fraction.
        Some(value) => match value.as_f64() {
            Some(time) if time >= 0.0 => Ok(Some(time as u64)),
            _ => Err(JwtError::Malformed),
        },
    };
    let until = time("exp")?.ok_or(JwtError::Expired)?;
    let from = time("nbf")?.unwrap_or(0);
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if let Some(issuer) = &rules.issuer
        && text("iss") != Some(issuer)
    {
        return Err(JwtError::Issuer);
    }
    if !rules.audience.is_empty() {
        let wanted = |said: &Value| {
            said.as_str()
                .is_some_and(|s| rules.audience.iter().any(|a| a == s))
        };
        let good = match claims.get("aud") {
            Some(Value::Array(said)) => said.iter().any(wanted),
            Some(said) => wanted(said),
            None => false,
        };
        if !good {
            return Err(JwtError::Audience);
        }
    }
    let short = |name: &str| {
        text(name).filter(|value| {
            (1..=MAX_CLAIM).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic())
        })
    };
    let claims = Claims {
        valid: (
            from.saturating_sub(LEEWAY_SECS),
            until.saturating_add(LEEWAY_SECS),
        ),
        tenant: short(&rules.tenant_claim)
            .ok_or(JwtError::NoTenant)?
            .to_owned(),
        flow: rules
            .fairness_claim
            .as_deref()
            .and_then(short)
            .map(str::to_owned),
    };
    claims.check_time(now_unix_ms)?;
    Ok(claims)
}
