//! `quorate cache top`.

use quorate_proto::v1::{CacheTopPool, CacheTopRequest, CacheTopResponse, HotPrefix};

use super::{Shape, passed, ratio, seconds, share, usage_tree};
use crate::{
    Exit, Failure, Io,
    client::Client,
    command::explain::{silent_tree, warn_of_silent},
    manifest::Tree,
    output::{Table, plain},
};

pub(super) async fn execute(
    client: &Client,
    (pool, limit): (String, u32),
    shape: Shape,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let request = CacheTopRequest { pool, limit };
    let top = client
        .call(async |link| link.cache().top(request.clone()).await)
        .await?;
    warn_of_silent(&top.silent, io)?;
    if shape.write(|| tree(&top), io)? {
        return Ok(Exit::Ok);
    }
    if top.pools.is_empty() {
        writeln!(io.out, "No pool follows its engines' caches.")?;
    }
    for (i, pool) in top.pools.iter().enumerate() {
        if i > 0 {
            writeln!(io.out)?;
        }
        write(pool, shape == Shape::Wide, io)?;
    }
    Ok(Exit::Ok)
}

fn write(pool: &CacheTopPool, wide: bool, io: &mut Io<'_>) -> Result<(), Failure> {
    let usage = pool.usage.unwrap_or_default();
    let name = plain(&pool.pool);
    if usage.picks == 0 && usage.answers == 0 {
        let window = passed(usage.window.as_ref());
        writeln!(
            io.out,
            "Pool {name}: no prompt was routed by caches in the last {window}"
        )?;
    } else {
        writeln!(
            io.out,
            "Pool {name}: of {} prompt tokens in {} picks, {} were predicted to be cached; of {} in {} answers, engines found {} (last {})",
            usage.prompt_tokens,
            usage.picks,
            or_none(share(usage.predicted_tokens, usage.prompt_tokens)),
            usage.answered_tokens,
            usage.answers,
            or_none(share(usage.found_tokens, usage.answered_tokens)),
            passed(usage.window.as_ref()),
        )?;
    }
    if pool.prefixes.is_empty() {
        return Ok(());
    }
    let all = if pool.counted < pool.picks {
        format!("{} of {}", pool.counted, pool.picks)
    } else {
        pool.counted.to_string()
    };
    let window = passed(pool.window.as_ref());
    writeln!(io.out, "Hottest prefixes of {all} prompts (last {window}):")?;
    let mut heading = vec![
        "PREFIX",
        "TOKENS",
        "REQUESTS",
        "HITS",
        "HIT RATIO",
        "ENGINES",
    ];
    if wide {
        heading.extend(["MISSED AT MOST", "LONGER THAN"]);
    }
    let mut table = Table::new(&heading);
    for of in &pool.prefixes {
        let mut row = vec![
            of.key.clone(),
            of.tokens.to_string(),
            of.requests.to_string(),
            of.hits.to_string(),
            share(of.hits, of.requests),
            of.holders.to_string(),
        ];
        if wide {
            row.extend([of.missed.to_string(), of.parent.clone()]);
        }
        table.row(row);
    }
    table.write("", io.out)?;
    Ok(())
}

fn or_none(share: String) -> String {
    if share.is_empty() {
        return "none".to_owned();
    }
    share
}

fn tree(top: &CacheTopResponse) -> Tree {
    let mut tree = Tree::map();
    tree.put("pools", top.pools.iter().map(pool_tree).collect::<Tree>());
    let answered = top.answered.iter().map(String::as_str);
    tree.put("answered", answered.collect::<Tree>());
    tree.put_some("silent", silent_tree(&top.silent));
    tree
}

fn pool_tree(pool: &CacheTopPool) -> Tree {
    let mut tree = Tree::map();
    tree.put("pool", pool.pool.as_str());
    tree.put_some("usage", pool.usage.as_ref().map(usage_tree));
    tree.put("picks", pool.picks);
    tree.put("counted", pool.counted);
    tree.put_some("windowSeconds", seconds(pool.window.as_ref()));
    tree.put(
        "prefixes",
        pool.prefixes.iter().map(prefix_tree).collect::<Tree>(),
    );
    tree
}

fn prefix_tree(of: &HotPrefix) -> Tree {
    let mut tree = Tree::map();
    tree.put("key", of.key.as_str());
    tree.put("tokens", of.tokens);
    tree.put("requests", of.requests);
    tree.put("hits", of.hits);
    tree.put_some("hitRatio", ratio(of.hits, of.requests));
    tree.put("missed", of.missed);
    tree.put("engines", of.holders);
    tree.put_some("parent", of.parent.as_str());
    tree
}
