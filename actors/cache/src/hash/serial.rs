//! Canonical CBOR (RFC 8949, section 4.2) of what enters a vLLM block hash: shortest heads, definite lengths.

use super::hasher::{Extra, ExtraForm};

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const NULL: u8 = 0xf6;

fn head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend([major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend(value.to_be_bytes());
        }
    }
}

/// A text.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    head(out, TEXT, text.len() as u64);
    out.extend(text.as_bytes());
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, BYTES, bytes.len() as u64);
    out.extend(bytes);
}

fn int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        head(out, NEGATIVE, !value as u64);
    } else {
        head(out, UNSIGNED, value as u64);
    }
}

/// `(parent, tokens, extras or None)`.
pub(super) fn block(
    out: &mut Vec<u8>,
    parent: &[u8],
    tokens: &[u32],
    extras: &[Extra<'_>],
    form: ExtraForm,
) {
    head(out, ARRAY, 3);
    bytes(out, parent);
    head(out, ARRAY, tokens.len() as u64);
    for token in tokens {
        head(out, UNSIGNED, u64::from(*token));
    }
    if extras.is_empty() {
        out.push(NULL);
        return;
    }
    head(out, ARRAY, extras.len() as u64);
    for extra in extras {
        match form {
            ExtraForm::Tagged => tagged(out, extra),
            ExtraForm::Untagged => untagged(out, extra),
        }
    }
}

fn tagged(out: &mut Vec<u8>, extra: &Extra<'_>) {
    let fields = match extra {
        Extra::Lora { .. } | Extra::Item { .. } => 3,
        Extra::Salt(_) | Extra::Embeds(_) => 2,
    };
    head(out, ARRAY, fields);
    text(out, extra.tag());
    match extra {
        Extra::Lora { name, path } => {
            text(out, name);
            text(out, path);
        }
        Extra::Item { identifier, offset } => {
            text(out, identifier);
            int(out, *offset);
        }
        Extra::Salt(salt) => text(out, salt),
        Extra::Embeds(digest) => bytes(out, digest),
    }
}

fn untagged(out: &mut Vec<u8>, extra: &Extra<'_>) {
    match extra {
        Extra::Lora { name, .. } => text(out, name),
        Extra::Item { identifier, offset } => {
            head(out, ARRAY, 2);
            text(out, identifier);
            int(out, *offset);
        }
        Extra::Salt(salt) => text(out, salt),
        Extra::Embeds(digest) => bytes(out, digest),
    }
}
