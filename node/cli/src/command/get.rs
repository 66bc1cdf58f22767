//! `quorate get`: list resources or show some of them.

use std::{collections::BTreeMap, time::SystemTime};

use quorate_proto::v1::{Consistency, GetRequest, Kind, ListRequest, ReadStamp, Resource};

use super::target::{self, Target};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    kind::{KINDS, KindNames, is_declared},
    manifest::duration,
    output::{Format, resources, write_documents},
};

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "List resources or show some of them\n\n\
        Kinds: pools (po), endpoints (ep), nodes (no), regions (reg), settings (set), schedulingconfigs (sc), \
        configrevisions (cr), objectives (obj), modelrewrites (mr), tenants (tn), apikeys (ak), and all for everything that \
        was declared (all but nodes and config revisions). What -o yaml and -o json write can be applied again.",
    after_help = format!("\
Examples:
  quorate get pools
  quorate get endpoints --pool chat -l gpu=h100 -o wide
  quorate get pool chat -o yaml
  quorate get all -o yaml > backup.yaml
  quorate get nodes --stale          # also without a quorum

{EXIT_CODES}")
)]
pub struct GetArgs {
    /// all, KIND, KIND NAME... or KIND/NAME...
    #[arg(required = true, value_name = "KIND [NAME]")]
    target: Vec<String>,
    /// How to write them
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
    /// Only those with this label; may be repeated, all must match
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = target::label)]
    labels: Vec<(String, String)>,
    /// Only endpoints of this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Read the answering node's own view: at once and without a quorum, but perhaps not the newest
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn execute(args: GetArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    let consistency = if args.stale {
        Consistency::Stale
    } else {
        Consistency::Linearizable
    };
    let filter = Filter {
        labels: args.labels.into_iter().collect(),
        pool: args.pool.unwrap_or_default(),
        consistency,
    };
    match target::parse(&args.target)? {
        Target::Names(names) => {
            if !filter.labels.is_empty() || !filter.pool.is_empty() {
                return Err(Failure::new(
                    Exit::Usage,
                    "-l and --pool select from a list: leave the names out",
                ));
            }
            by_name(&client, &names, consistency, args.output, io).await
        }
        Target::Kind(kind) if kind != Kind::Endpoint && !filter.pool.is_empty() => {
            Err(Failure::new(Exit::Usage, "--pool is for endpoints"))
        }
        Target::Kind(kind) => {
            let (resources, stamp) = list(&client, kind, &filter).await?;
            write_kinds(&[(kind, resources)], args.output, io)?;
            tell_age(args.stale, stamp.as_ref(), io)?;
            Ok(Exit::Ok)
        }
        Target::All => {
            if !filter.pool.is_empty() {
                return Err(Failure::new(Exit::Usage, "--pool is for endpoints"));
            }
            let (mut kinds, mut last) = (Vec::new(), None);
            for KindNames { kind, .. } in KINDS.iter().filter(|names| is_declared(names.kind)) {
                let (resources, stamp) = list(&client, *kind, &filter).await?;
                kinds.push((*kind, resources));
                last = stamp;
            }
            write_kinds(&kinds, args.output, io)?;
            tell_age(args.stale, last.as_ref(), io)?;
            Ok(Exit::Ok)
        }
    }
}

/// What a listing selects.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub labels: BTreeMap<String, String>,
    pub pool: String,
    pub consistency: Consistency,
}

/// All resources of a kind, page by page.
pub(super) async fn list(
    client: &Client,
    kind: Kind,
    filter: &Filter,
) -> Result<(Vec<Resource>, Option<ReadStamp>), Failure> {
    let (mut resources, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListRequest {
            kind: kind.into(),
            labels: filter.labels.clone(),
            pool: filter.pool.clone(),
            page_size: 0,
            page_token: page_token.clone(),
            consistency: filter.consistency.into(),
        };
        let page = client
            .call(async |link| link.resources().list(request.clone()).await)
            .await?;
        resources.extend(page.resources);
        if page.next_page_token.is_empty() {
            return Ok((resources, page.stamp));
        }
        if page.next_page_token == page_token {
            return Err(Failure::new(
                Exit::Failed,
                "the server sends the same page again and again",
            ));
        }
        page_token = page.next_page_token;
    }
}

/// One resource.
pub(super) async fn get(
    client: &Client,
    kind: Kind,
    name: &str,
    consistency: Consistency,
) -> Result<(Resource, Option<ReadStamp>), Failure> {
    let request = GetRequest {
        kind: kind.into(),
        name: name.to_owned(),
        consistency: consistency.into(),
    };
    let response = client
        .call(async |link| link.resources().get(request.clone()).await)
        .await?;
    let resource = response
        .resource
        .ok_or_else(|| Failure::new(Exit::Failed, "the server sent an empty answer"))?;
    Ok((resource, response.stamp))
}

async fn by_name(
    client: &Client,
    names: &[(Kind, String)],
    consistency: Consistency,
    format: Format,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let mut found: Vec<(Kind, Vec<Resource>)> = Vec::new();
    let (mut missing, mut last) = (None, None);
    for (kind, name) in names {
        match get(client, *kind, name, consistency).await {
            Ok((resource, stamp)) => {
                last = stamp;
                match found.last_mut().filter(|(last, _)| last == kind) {
                    Some((_, resources)) => resources.push(resource),
                    None => found.push((*kind, vec![resource])),
                }
            }
            // The others are shown all the same.
            Err(failure) if failure.exit == Exit::NotFound => {
                if let Some(earlier) = missing.replace(failure) {
                    writeln!(io.err, "error: {earlier}")?;
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    if let ([(_, resources)], [_], true) = (found.as_slice(), names, matches!(format, Format::Json))
    {
        write_documents(resources, format, true, io.out)?;
    } else if !found.is_empty() {
        write_kinds(&found, format, io)?;
    }
    tell_age(consistency == Consistency::Stale, last.as_ref(), io)?;
    missing.map_or(Ok(Exit::Ok), Err)
}

fn write_kinds(
    kinds: &[(Kind, Vec<Resource>)],
    format: Format,
    io: &mut Io<'_>,
) -> Result<(), Failure> {
    if !matches!(format, Format::Table | Format::Wide) {
        let resources: Vec<Resource> = kinds
            .iter()
            .flat_map(|(_, resources)| resources.iter().cloned())
            .collect();
        return write_documents(&resources, format, false, io.out);
    }
    let several = kinds.len() > 1;
    let mut first = true;
    for (kind, resources) in kinds.iter().filter(|(_, resources)| !resources.is_empty()) {
        if several {
            let blank = if first { "" } else { "\n" };
            let title = crate::kind::names(*kind)
                .map_or("resources", |names| names.plural)
                .to_uppercase();
            writeln!(io.out, "{blank}{title}")?;
        }
        first = false;
        resources::table(*kind, resources, format == Format::Wide, SystemTime::now())
            .write("", io.out)?;
    }
    if first {
        writeln!(io.err, "nothing found")?;
    }
    Ok(())
}

/// A stale answer says how old it may be.
fn tell_age(stale: bool, stamp: Option<&ReadStamp>, io: &mut Io<'_>) -> Result<(), Failure> {
    if !stale {
        return Ok(());
    }
    let Some(stamp) = stamp else { return Ok(()) };
    let age = match &stamp.age {
        Some(age) => format!("at most {} old", duration::short(age)),
        None => "of unknown age: it has not heard of a leader since it started".to_owned(),
    };
    writeln!(
        io.err,
        "view of node {}: log index {}, {age}",
        stamp.node_id, stamp.applied_index
    )?;
    Ok(())
}
