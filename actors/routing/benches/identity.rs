//! Who shows a token: seen for the first time (its signature is checked) and known already.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use quorate_routing::identity::{
    Authenticator, IdentityTable, Jwks, JwtRules, TenantRule, Verifier,
};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::{Value, json};
use std::hint::black_box;
use std::sync::Arc;

const NOW: u64 = 1_800_000_000;

/// A token and the key set that it is verified with.
type Signed = (&'static str, String, String);

fn signed(algorithm: Algorithm, name: &'static str, key: &EncodingKey, jwk: Value) -> Signed {
    let claims = json!({
        "iss": "https://login.example", "aud": "quorate", "tenant": "t", "sub": "somebody@example.org",
        "exp": NOW + 3600, "iat": NOW, "jti": "0b8a4a1e-5d1c-4d6f-9a55-3f7c6f6ea001", "scope": "models:read models:use",
    });
    let token = jsonwebtoken::encode(&Header::new(algorithm), &claims, key).expect("it can sign");
    (name, token, json!({ "keys": [jwk] }).to_string())
}

fn tokens() -> [Signed; 2] {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let random = SystemRandom::new();
    let ed = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
    let public = Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("a key");
    let x = URL_SAFE_NO_PAD.encode(public.public_key().as_ref());
    let ec =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let public = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random)
        .expect("a key");
    let (ec_x, ec_y) = public.public_key().as_ref()[1..].split_at(32);
    let (ec_x, ec_y) = (URL_SAFE_NO_PAD.encode(ec_x), URL_SAFE_NO_PAD.encode(ec_y));
    [
        signed(
            Algorithm::EdDSA,
            "token/EdDSA",
            &EncodingKey::from_ed_der(ed.as_ref()),
            json!({"kty": "OKP", "crv": "Ed25519", "x": x}),
        ),
        signed(
            Algorithm::ES256,
            "token/ES256",
            &EncodingKey::from_ec_der(ec.as_ref()),
            json!({"kty": "EC", "crv": "P-256", "x": ec_x, "y": ec_y}),
        ),
    ]
}

fn bench(c: &mut Criterion) {
    let tenant = TenantRule {
        name: "t".into(),
        ..TenantRule::default()
    };
    for (name, token, jwks) in tokens() {
        let door = Authenticator::default();
        let table = IdentityTable::build(
            std::slice::from_ref(&tenant),
            &[],
            &IdentityTable::default(),
            1,
        );
        door.set_table(Arc::new(table));
        let verifier = Arc::new(Verifier {
            rules: JwtRules {
                issuer: Some("https://login.example".into()),
                audience: vec!["quorate".into()],
                tenant_claim: "tenant".into(),
                fairness_claim: Some("sub".into()),
            },
            keys: Jwks::parse(&jwks).expect("a set"),
        });
        let mut group = c.benchmark_group(name);
        group.bench_function("first", |b| {
            b.iter_batched(
                // Forgets what was verified.
                || door.set_verifier(Arc::clone(&verifier)),
                |()| black_box(door.identify(Some(&token), NOW * 1000)).is_ok(),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("known", |b| {
            b.iter(|| black_box(door.identify(Some(&token), NOW * 1000)).is_ok());
        });
        assert!(door.identify(Some(&token), NOW * 1000).is_ok());
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
