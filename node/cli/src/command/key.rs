//! `quorate key`: the keys that clients show. A key is made here and shown once; the cluster keeps its digest only.

use std::time::{Duration, SystemTime};

use quorate_proto::v1::{ApiKeySpec, Kind, Resource, resource::Spec};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};

use super::tenant::{Allowed, change, named, show_kind, write};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    manifest::{duration, hex},
};

/// What every key begins with: tools that look for leaked secrets find it by that.
const PREFIX: &str = "qk-";
/// Random bytes in a key.
const SECRET_BYTES: usize = 32;
/// Characters of a key that are kept to recognise it by.
const HINT: usize = 9;

/// Arguments of `key`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum KeyCommand {
    /// Make a key and write it to standard output; it cannot be shown again
    #[command(after_help = format!("\
Examples:
  quorate key create search-prod --tenant search > search.key
  quorate key create trial --tenant search --expires 30d --model llama-3-8b --requests-per-second 1

Clients send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`.

{EXIT_CODES}"))]
    Create {
        /// Its name, for `key list` and `key revoke`
        name: String,
        /// The tenant that it belongs to
        #[arg(long, value_name = "NAME")]
        tenant: String,
        /// How long it is accepted
        #[arg(long, value_name = "TIME", value_parser = duration::parse_std)]
        expires: Option<Duration>,
        #[command(flatten)]
        allowed: Allowed,
    },
    /// List the keys
    #[command(after_help = EXIT_CODES)]
    List {
        /// Only those of this tenant
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Accept a key no more
    #[command(after_help = EXIT_CODES)]
    Revoke {
        /// The key's name
        name: String,
    },
}

pub(super) async fn execute(args: KeyArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    match args.command {
        KeyCommand::Create {
            name,
            tenant,
            expires,
            allowed,
        } => {
            let key = new_secret()?;
            let expires_at = expires
                .map(|after| {
                    SystemTime::now()
                        .checked_add(after)
                        .map(prost_types::Timestamp::from)
                        .ok_or_else(|| Failure::new(Exit::Usage, "--expires is too long"))
                })
                .transpose()?;
            let spec = ApiKeySpec {
                tenant,
                sha256: digest(&SHA256, key.as_bytes()).as_ref().to_vec(),
                hint: key.chars().take(HINT).collect(),
                limits: allowed.limits(),
                models: allowed.models,
                objectives: allowed.objectives,
                expires_at,
                revoked: false,
            };
            write(&client, named(&name, Spec::ApiKey(spec)), Some(0)).await?;
            writeln!(
                io.err,
                "apikey/{name} created; this is the only time that the key is shown:"
            )?;
            writeln!(io.out, "{key}")?;
            Ok(Exit::Ok)
        }
        KeyCommand::List { tenant } => {
            let of_tenant = |resource: &Resource| match (&resource.spec, &tenant) {
                (Some(Spec::ApiKey(key)), Some(tenant)) => key.tenant == *tenant,
                _ => true,
            };
            show_kind(&client, Kind::ApiKey, of_tenant, io).await
        }
        KeyCommand::Revoke { name } => {
            change(&client, Kind::ApiKey, &name, |spec| {
                if let Spec::ApiKey(key) = spec {
                    key.revoked = true;
                }
            })
            .await?;
            writeln!(io.out, "apikey/{name} revoked")?;
            Ok(Exit::Ok)
        }
    }
}

fn new_secret() -> Result<String, Failure> {
    let mut secret = [0; SECRET_BYTES];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_| Failure::new(Exit::Failed, "the system gives no random numbers"))?;
    Ok(format!("{PREFIX}{}", hex(&secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_and_differ() {
        let (a, b) = (new_secret().unwrap(), new_secret().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), PREFIX.len() + 2 * SECRET_BYTES);
        assert!(a.starts_with(PREFIX));
    }
}
