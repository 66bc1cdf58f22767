//! Tokens: each algorithm, each claim, each way to forge one.

use super::*;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Unix time at which the tokens are checked; they end 100 s later.
const NOW: u64 = 1_800_000_000;

/// Modulus of a 2048-bit key whose private half is not kept, and a token that it signed.
const RSA_N: &str = "tdk1u2k-Zl6ZAd2BQ0nG2akunwnvAm-H4n-0-x2quHcN_NuCXK7rauwsviZUu2_tg0vcUkIZ19yDjS3xtF_JV0daI6ZYNc2allOvWPDPDwAwheqqsaGUFolITH-OYqvUecD0v-PCeK0QS3uAMe5qmrBiGBY1zmdMk6Pknq-tX5kOi-2ulIQPG9YGz709dc14CRt1shHikQmx2hftSfliCvnie3RMhHUfQTg8BfHKWDsuTYwlBV7N4ob-2wGBNI-0wpahykpaDzgYpAaCQSaAV3XfAhQXj0mlLzl0jkea8j3D04YMz-fkWHgXz_cZVZBq3VC6GX8un9onAhKJXqoGyQ";
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYS0xIiwidHlwIjoiSldUIn0.eyJpc3MiOiJodHRwczovL2xvZ2luLmV4YW1wbGUiLCJhdWQiOlsicXVvcmF0ZSIsIngiXSwidGVuYW50IjoidCIsInN1YiI6ImFubiIsImV4cCI6MTgwMDAwMDEwMCwibmJmIjoxNzk5OTk5MDAwfQ.N59Zsg7eUsWFPapZsIOBfSrU0i_7LDtObXhTiwUpyLzoYbixwQ9i0uB0N9GNKvF7U2Qq2lFwK7lwYVtgqc688mH9_4Pgt8QGAf_3q0p0LDIzvJdp-jhnSZI5JcTrH66S3TWbdmugzfDuq-VPOA07h7LKtn6oZYl3lTA5NUI_sKnpEOwCxOCWnss0EkBEET9Ibjfbs9lj5hyvYX7vSz4hj9VTeYEYveDlNghRM-3eIZ0kQ3dVJymjim62neo3wsVnbkh3k59TBB_BVYrHXKY1yIKhDvWshVc529A1q-61i-SSLwkIK8moAlGqxM8F6DRRWSBEJ7zfRd-UlI-yK__Qlg";

fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer with a key of each kind.
struct Issuer {
    ed: EncodingKey,
    ec: EncodingKey,
    jwks: String,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ed_public = Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ec_public =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random)
                .unwrap();
        // 0x04, x, y
        let (x, y) = ec_public.public_key().as_ref()[1..].split_at(32);
        let jwks = json!({"keys": [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
            {"kty": "from the future", "kid": "f"},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "use": "sig",
             "x": base64(ed_public.public_key().as_ref())},
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": base64(x), "y": base64(y)},
            {"kty": "RSA", "kid": "rsa-1", "alg": "RS256", "n": RSA_N, "e": "AQAB"},
            {"kty": "RSA", "kid": "other-use", "use": "enc", "n": RSA_N, "e": "AQAB"},
        ]});
        Self {
            ed: EncodingKey::from_ed_der(ed.as_ref()),
            ec: EncodingKey::from_ec_der(ec.as_ref()),
            jwks: jwks.to_string(),
        }
    }

    fn sign(&self, kid: Option<&str>, algorithm: Algorithm, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        let key = match algorithm {
            Algorithm::ES256 => &self.ec,
            _ => &self.ed,
        };
        jsonwebtoken::encode(&header, claims, key).unwrap()
    }

    fn door(&self) -> Authenticator {
        let tenant = |name: &str, disabled| TenantRule {
            name: name.into(),
            disabled,
            ..TenantRule::default()
        };
        let tenants = [tenant("t", false), tenant("off", true)];
        let door = Authenticator::default();
        door.set_table(Arc::new(IdentityTable::build(
            &tenants,
            &[],
            &IdentityTable::default(),
            1,
        )));
        door.set_verifier(Arc::new(Verifier {
            rules: JwtRules {
                issuer: Some("https://login.example".into()),
                audience: vec!["quorate".into()],
                tenant_claim: "tenant".into(),
                fairness_claim: Some("sub".into()),
            },
            keys: Jwks::parse(&self.jwks).unwrap(),
        }));
        door
    }
}

fn good() -> Value {
    json!({"iss": "https://login.example", "aud": "quorate", "tenant": "t", "exp": NOW + 100})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    claims[name] = value;
    claims
}

fn who(door: &Authenticator, token: &str) -> Result<String, Denied> {
    door.identify(Some(token), NOW * 1000)
        .map(|caller| caller.fairness_id().to_string())
}

#[test]
fn each_algorithm_is_verified_with_its_own_key() {
    let issuer = Issuer::new();
    let door = issuer.door();
    assert_eq!(Jwks::parse(&issuer.jwks).unwrap().len(), 3);
    for (kid, algorithm) in [
        (Some("ed"), Algorithm::EdDSA),
        (None, Algorithm::EdDSA),
        (Some("ec"), Algorithm::ES256),
        (None, Algorithm::ES256),
    ] {
        let token = issuer.sign(kid, algorithm, &good());
        assert_eq!(who(&door, &token), Ok("t".into()), "{kid:?} {algorithm:?}");
    }
    assert_eq!(who(&door, RSA_TOKEN), Ok("t/ann".into()));
    let unknown = issuer.sign(Some("old"), Algorithm::EdDSA, &good());
    assert_eq!(who(&door, &unknown), Err(JwtError::UnknownKey.into()));
    // The key of another algorithm is none.
    let crossed = issuer.sign(Some("ec"), Algorithm::EdDSA, &good());
    assert_eq!(who(&door, &crossed), Err(JwtError::UnknownKey.into()));
}

#[test]
fn forged_tokens_are_refused() {
    let issuer = Issuer::new();
    let door = issuer.door();
    let token = issuer.sign(Some("ed"), Algorithm::EdDSA, &good());
    let (head, signature) = token.rsplit_once('.').unwrap();
    let other = Issuer::new().sign(Some("ed"), Algorithm::EdDSA, &good());
    let (_, other_signature) = other.rsplit_once('.').unwrap();
    assert_eq!(
        who(&door, &format!("{head}.{other_signature}")),
        Err(JwtError::Signature.into())
    );
    let richer = base64(with("tenant", "off".into()).to_string().as_bytes());
    let (header, _) = head.split_once('.').unwrap();
    assert_eq!(
        who(&door, &format!("{header}.{richer}.{signature}")),
        Err(JwtError::Signature.into())
    );
    let payload = base64(good().to_string().as_bytes());
    let none = base64(br#"{"alg":"none"}"#);
    assert_eq!(
        who(&door, &format!("{none}.{payload}.")),
        Err(JwtError::Malformed.into())
    );
    // The public key as the secret of a shared-key algorithm.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("ed".into());
    let shared = jsonwebtoken::encode(
        &header,
        &good(),
        &EncodingKey::from_secret(RSA_N.as_bytes()),
    );
    assert_eq!(
        who(&door, &shared.unwrap()),
        Err(JwtError::Algorithm.into())
    );
    for broken in ["eyJ..", "eyJhbGciOiJFZERTQSJ9.x.y", "eyJ.eyJ.eyJ"] {
        assert_eq!(
            who(&door, broken),
            Err(JwtError::Malformed.into()),
            "{broken}"
        );
    }
    let long = format!("eyJ.{}.x", "a".repeat(MAX_TOKEN));
    assert_eq!(who(&door, &long), Err(JwtError::Malformed.into()));
}

#[test]
fn each_claim_is_checked() {
    let issuer = Issuer::new();
    let door = issuer.door();
    let said = |claims: &Value| who(&door, &issuer.sign(Some("ed"), Algorithm::EdDSA, claims));
    for (name, value, expected) in [
        ("exp", json!(NOW - 59), Ok("t")),
        ("exp", json!(NOW - 60), Err(JwtError::Expired.into())),
        ("exp", json!(NOW as f64 + 0.5), Ok("t")),
        ("exp", Value::Null, Err(JwtError::Malformed.into())),
        ("exp", json!("soon"), Err(JwtError::Malformed.into())),
        ("exp", json!(-1), Err(JwtError::Malformed.into())),
        ("nbf", json!(NOW + 60), Ok("t")),
        ("nbf", json!(NOW + 61), Err(JwtError::NotYet.into())),
        (
            "iss",
            json!("https://evil.example"),
            Err(JwtError::Issuer.into()),
        ),
        ("aud", json!(["a", "quorate"]), Ok("t")),
        ("aud", json!(["a"]), Err(JwtError::Audience.into())),
        ("aud", Value::Null, Err(JwtError::Audience.into())),
        ("tenant", json!("nobody"), Err(Denied::UnknownTenant)),
        ("tenant", json!("off"), Err(Denied::Disabled)),
        ("tenant", json!(7), Err(JwtError::NoTenant.into())),
        ("tenant", json!(""), Err(JwtError::NoTenant.into())),
        ("sub", json!("bob"), Ok("t/bob")),
        // What no header could carry makes no flow.
        ("sub", json!("b o b"), Ok("t")),
    ] {
        let said = said(&with(name, value.clone()));
        assert_eq!(
            said.as_ref().map(String::as_str).map_err(|e| *e),
            expected,
            "{name} {value}"
        );
    }
    let mut endless = good();
    endless.as_object_mut().unwrap().remove("exp");
    assert_eq!(said(&endless), Err(JwtError::Expired.into()));
}

/// A token that is known is let in without its signature being looked at, and only as long as all of the rest holds.
#[test]
fn a_verified_token_is_good_until_it_ends_or_the_keys_change() {
    let issuer = Issuer::new();
    let door = issuer.door();
    let at = |door: &Authenticator, token: &str, now: u64| {
        door.identify(Some(token), now * 1000)
            .map(|caller| caller.fairness_id().to_string())
    };
    let claims = with("sub", "ann".into());
    let token = issuer.sign(Some("ed"), Algorithm::EdDSA, &claims);
    for _ in 0..3 {
        assert_eq!(at(&door, &token, NOW), Ok("t/ann".into()));
    }
    // Another signature makes another token.
    let (head, _) = token.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", base64(&[0; 64]));
    assert_eq!(at(&door, &forged, NOW), Err(JwtError::Signature.into()));
    // Its end, with the leeway of a minute.
    assert_eq!(at(&door, &token, NOW + 159), Ok("t/ann".into()));
    assert_eq!(at(&door, &token, NOW + 160), Err(JwtError::Expired.into()));
    assert_eq!(at(&door, &token, NOW), Ok("t/ann".into()));
    // Tenants are looked up each time.
    let tenant = TenantRule {
        name: "t".into(),
        disabled: true,
        ..TenantRule::default()
    };
    let table = IdentityTable::build(&[tenant], &[], &IdentityTable::default(), 1);
    door.set_table(Arc::new(table));
    assert_eq!(at(&door, &token, NOW), Err(Denied::Disabled));

    // The issuer has new keys.
    let door = issuer.door();
    assert_eq!(at(&door, &token, NOW), Ok("t/ann".into()));
    let rules = |audience: &str| JwtRules {
        issuer: None,
        audience: vec![audience.into()],
        tenant_claim: "tenant".into(),
        fairness_claim: None,
    };
    let verifier = |audience: &str, issuer: &Issuer| {
        Arc::new(Verifier {
            rules: rules(audience),
            keys: Jwks::parse(&issuer.jwks).unwrap(),
        })
    };
    door.set_verifier(verifier("quorate", &Issuer::new()));
    assert_eq!(at(&door, &token, NOW), Err(JwtError::Signature.into()));
    // The old keys again, under other rules.
    door.set_verifier(verifier("quorate", &issuer));
    assert_eq!(at(&door, &token, NOW), Ok("t".into()));
    door.set_verifier(verifier("others", &issuer));
    assert_eq!(at(&door, &token, NOW), Err(JwtError::Audience.into()));
}

#[test]
fn useless_sets_are_refused() {
    for text in ["", "[]", "{}", "{\"keys\": 1}", "nonsense"] {
        assert!(
            matches!(Jwks::parse(text), Err(JwksError::Malformed(_))),
            "{text}"
        );
    }
    for text in [
        r#"{"keys": []}"#,
        r#"{"keys": [1, {"kty": "oct", "k": "c2VjcmV0"}]}"#,
        r#"{"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]}"#,
    ] {
        assert_eq!(Jwks::parse(text).unwrap_err(), JwksError::NoKeys, "{text}");
    }
}
