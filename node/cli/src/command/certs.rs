//! `quorate certs`: a CA for one cluster, and certificates that it signs. Nothing here talks to a cluster.
//!
//! A node's certificate carries the URI `quorate://node/NAME`, a client's `quorate://client/NAME`: the URI says who it is,
//! host names and addresses say where it may be found. Keys are ECDSA P-256, in PKCS#8.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::X509Certificate,
};

use crate::{Exit, Failure, Io, output::plain};

/// Certificates are valid from this long before they are made: other hosts' clocks may be behind.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY: u64 = 86_400;

/// Arguments of `certs`.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    long_about = "Make the cluster's CA, and certificates for nodes and clients\n\n\
        Nodes speak to each other over mutual TLS: each proves with a certificate of the cluster's CA that it is the node \
        whose name it carries. Make the CA once, on a machine that is no node, keep ca.key there, and copy to each node \
        ca.crt and its own NAME.crt and NAME.key.",
    after_help = "\
Examples:
  quorate certs init --out ./certs
  quorate certs node node-1 --ca ./certs --hosts node-1.example.org,10.0.0.1
  quorate certs client alice --ca ./certs
  quorate certs show ./certs/node-1.crt"
)]
pub struct CertsArgs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CertsCommand {
    /// Make a CA: ca.crt and ca.key
    Init {
        /// Directory for the two files
        #[arg(long, value_name = "DIR", default_value = "certs")]
        out: PathBuf,
        /// What the CA is called in its certificate
        #[arg(long, default_value = "quorate cluster CA")]
        name: String,
        /// How long it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// Replace files that are there already. Certificates of the old CA are worth nothing then
        #[arg(long)]
        force: bool,
    },
    /// Make a node's certificate: NAME.crt and NAME.key
    Node {
        /// The node's name, as it is given to `quorate router --name`
        name: String,
        /// Host names and IP addresses that the node is reached by
        #[arg(long, value_name = "HOST,...", value_delimiter = ',', required = true)]
        hosts: Vec<String>,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// Make a certificate for somebody who uses the control API: NAME.crt and NAME.key
    Client {
        /// Who it is
        name: String,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// Show what is in a certificate file
    Show {
        /// A PEM file
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct IssueArgs {
    /// Directory with ca.crt and ca.key
    #[arg(long, value_name = "DIR", default_value = "certs")]
    ca: PathBuf,
    /// Directory for the two files; left out: that of the CA
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long the certificate is valid
    #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
}

pub(super) fn execute(args: CertsArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    match args.command {
        CertsCommand::Init {
            out,
            name,
            days,
            force,
        } => init(&out, &name, days, force, io)?,
        CertsCommand::Node { name, hosts, issue } => {
            let mut params = holder("node", &name, &issue)?;
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            for host in &hosts {
                params.subject_alt_names.push(host_name(host)?);
            }
            sign(params, &name, &issue, io)?;
        }
        CertsCommand::Client { name, issue } => {
            let mut params = holder("client", &name, &issue)?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            sign(params, &name, &issue, io)?;
        }
        CertsCommand::Show { file } => show(&file, io)?,
    }
    Ok(Exit::Ok)
}

fn crypto(error: rcgen::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the certificate cannot be made: {error}"),
    )
}

/// What every certificate has: its names, its validity and a random serial number.
fn params(common_name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + Duration::from_secs(u64::from(days) * DAY);
    // Positive and of fixed length, as RFC 5280 wants it: the first byte is below 0x80 and not zero.
    let mut serial = fastrand::u128(..).to_be_bytes();
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn init(out: &Path, name: &str, days: u32, force: bool, io: &mut Io<'_>) -> Result<(), Failure> {
    let mut params = params(name, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(crypto)?;
    let certificate = params.self_signed(&key).map_err(crypto)?;
    write_pair(
        out,
        "ca",
        &certificate.pem(),
        &key.serialize_pem(),
        force,
        io,
    )
}

/// The parameters of a certificate that says who somebody is.
fn holder(role: &str, name: &str, issue: &IssueArgs) -> Result<CertificateParams, Failure> {
    if let Some(error) = crate::manifest::name_error(name) {
        return Err(Failure::new(
            Exit::Invalid,
            format!("the name {name:?} {error}"),
        ));
    }
    if name == "ca" {
        return Err(Failure::new(
            Exit::Invalid,
            "the name \"ca\" would overwrite the CA's own files",
        ));
    }
    let mut params = params(name, issue.days);
    let uri = format!("quorate://{role}/{name}")
        .try_into()
        .map_err(crypto)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn host_name(host: &str) -> Result<SanType, Failure> {
    let bare = host.trim();
    let bare = bare
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(bare);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if bare.len() > 253 || !bare.split('.').all(label) {
        let hint = if bare.contains(':') {
            " (without a port)"
        } else {
            ""
        };
        return Err(Failure::new(
            Exit::Invalid,
            format!("{host:?} is no host name and no IP address{hint}"),
        ));
    }
    Ok(SanType::DnsName(
        bare.to_owned().try_into().map_err(crypto)?,
    ))
}

fn sign(
    params: CertificateParams,
    name: &str,
    issue: &IssueArgs,
    io: &mut Io<'_>,
) -> Result<(), Failure> {
    let read = |file: &str| {
        let path = issue.ca.join(file);
        fs::read_to_string(&path).map_err(|error| {
            let failure = Failure::from(error).context(path.display());
            match failure.exit {
                Exit::NotFound => failure.with_hint("make a CA first with `quorate certs init`"),
                _ => failure,
            }
        })
    };
    let (ca_cert, ca_key) = (read("ca.crt")?, read("ca.key")?);
    let bad = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Invalid,
            format!("{}: {error}", issue.ca.join(what).display()),
        )
    };
    let ca_key = KeyPair::from_pem(&ca_key).map_err(|error| bad("ca.key", &error))?;
    check_ca(&ca_cert, &ca_key, &params).map_err(|error| bad("ca.crt", &error))?;
    let issuer =
        Issuer::from_ca_cert_pem(&ca_cert, ca_key).map_err(|error| bad("ca.crt", &error))?;
    let key = KeyPair::generate().map_err(crypto)?;
    let certificate = params.signed_by(&key, &issuer).map_err(crypto)?;
    let out = issue.out.as_ref().unwrap_or(&issue.ca);
    write_pair(
        out,
        name,
        &certificate.pem(),
        &key.serialize_pem(),
        issue.force,
        io,
    )
}

/// A certificate that this CA signs has to be accepted by everybody who trusts the CA's certificate.
fn check_ca(pem: &str, key: &KeyPair, params: &CertificateParams) -> Result<(), String> {
    let pem = first_certificate(pem.as_bytes())?;
    let ca = pem.parse_x509().map_err(|error| error.to_string())?;
    if !ca.is_ca() {
        return Err("is not the certificate of a CA".to_owned());
    }
    if ca.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(key) {
        return Err("does not belong to ca.key".to_owned());
    }
    let until = ca.validity().not_after;
    if until.timestamp() < params.not_after.unix_timestamp() {
        return Err(format!("is valid until {until} only: choose fewer --days"));
    }
    Ok(())
}

/// Writes both files or none; the key is readable by its owner only.
fn write_pair(
    dir: &Path,
    name: &str,
    cert: &str,
    key: &str,
    force: bool,
    io: &mut Io<'_>,
) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|error| Failure::from(error).context(dir.display()))?;
    let (cert_path, key_path) = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
    );
    if !force
        && let Some(there) = [&cert_path, &key_path]
            .into_iter()
            .find(|path| path.exists())
    {
        let message = format!("{} is there already (--force replaces it)", there.display());
        return Err(Failure::new(Exit::Conflict, message));
    }
    write_file(&key_path, key)?;
    write_file(&cert_path, cert)?;
    for path in [&cert_path, &key_path] {
        writeln!(io.out, "{}", path.display())?;
    }
    Ok(())
}

/// Writes beside the target and renames, so that nobody ever reads half a file or a key with wider permissions.
fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    let at = |error: io::Error| Failure::from(error).context(path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}", fastrand::u64(..)));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // The error that is told is the first one.
        let _ = fs::remove_file(&temporary);
        at(error)
    })
}

fn first_certificate(pem: &[u8]) -> Result<Pem, String> {
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| format!("is no PEM file: {error}"))?;
        if block.label == "CERTIFICATE" {
            return Ok(block);
        }
    }
    Err("holds no certificate".to_owned())
}

fn show(file: &Path, io: &mut Io<'_>) -> Result<(), Failure> {
    let bytes = fs::read(file).map_err(|error| Failure::from(error).context(file.display()))?;
    let bad = |error: String| Failure::new(Exit::Invalid, format!("{}: {error}", file.display()));
    let mut first = true;
    for block in Pem::iter_from_buffer(&bytes) {
        let block = block.map_err(|error| bad(format!("is no PEM file: {error}")))?;
        if block.label != "CERTIFICATE" {
            continue;
        }
        let certificate = block.parse_x509().map_err(|error| bad(error.to_string()))?;
        if !std::mem::take(&mut first) {
            writeln!(io.out)?;
        }
        show_one(&certificate, io)?;
    }
    if first {
        return Err(bad("holds no certificate".to_owned()));
    }
    Ok(())
}

fn show_one(certificate: &X509Certificate<'_>, io: &mut Io<'_>) -> Result<(), Failure> {
    let (mut names, mut usages) = (Vec::new(), Vec::new());
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => {
                names.extend(san.general_names.iter().map(general_name))
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                usages.extend(usage.server_auth.then_some("server"));
                usages.extend(usage.client_auth.then_some("client"));
            }
            _ => {}
        }
    }
    let validity = certificate.validity();
    let left = validity.time_to_expiration().map(|left| left.whole_days());
    let left = left.map_or("expired or not valid yet".to_owned(), |days| {
        format!("{days} days left")
    });
    let mut usage = usages.join(", ");
    if certificate.is_ca() {
        usage = "CA".to_owned();
    }
    for (name, value) in [
        ("Subject", certificate.subject().to_string()),
        ("Issuer", certificate.issuer().to_string()),
        ("Serial", certificate.raw_serial_as_string()),
        ("Valid from", validity.not_before.to_string()),
        ("Valid until", format!("{} ({left})", validity.not_after)),
        ("Names", names.join(", ")),
        ("Usage", usage),
    ] {
        if !value.is_empty() {
            writeln!(io.out, "{name:<12} {}", plain(&value))?;
        }
    }
    Ok(())
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            (*name).to_owned()
        }
        GeneralName::IPAddress(bytes) => {
            match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => IpAddr::from(v4).to_string(),
                (_, Ok(v6)) => IpAddr::from(v6).to_string(),
                _ => "an address of odd length".to_owned(),
            }
        }
        other => other.to_string(),
    }
}
