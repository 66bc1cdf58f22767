//! `quorate cache lookup`.

use quorate_proto::v1::{
    CacheLookupBody, CacheLookupRequest, CacheLookupResponse, CacheLookupTokens, CachedPrefix,
    cache_lookup_request::What,
};

use super::{LookupArgs, Shape, ratio, share, tiers_text, tiers_tree};
use crate::{
    Exit, Failure, Io,
    client::Client,
    command::source::read_texts,
    manifest::Tree,
    output::{Table, plain},
};

/// Token ids that a table shows.
const SHOWN: usize = 16;

pub(super) async fn execute(
    client: &Client,
    args: LookupArgs,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let what = match (args.prompt, args.tokens, args.file) {
        (Some(text), ..) => What::Prompt(text),
        (None, Some(ids), _) => What::Tokens(CacheLookupTokens { ids }),
        (None, None, Some(file)) => {
            let mut texts = read_texts(&[file], io)?;
            let (name, text) = match (texts.pop(), texts.is_empty()) {
                (Some(only), true) => only,
                _ => return Err(Failure::new(Exit::Usage, "--file must name one file")),
            };
            if let Err(error) = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&text)
            {
                let message = format!("{name}: not a request in JSON: {error}");
                return Err(Failure::new(Exit::Invalid, message));
            }
            What::Body(CacheLookupBody {
                path: args.path.unwrap_or_default(),
                json: text.into_bytes(),
            })
        }
        (None, None, None) => return Err(Failure::new(Exit::Usage, "no prompt is given")),
    };
    let request = CacheLookupRequest {
        pool: args.pool,
        model: args.model.unwrap_or_default(),
        what: Some(what),
    };
    let found = client
        .call(async |link| link.cache().lookup(request.clone()).await)
        .await?;
    let shape = args.output.shape;
    if shape.write(|| tree(&found), io)? {
        return Ok(Exit::Ok);
    }
    table(&found, shape == Shape::Wide, io)?;
    Ok(Exit::Ok)
}

fn table(found: &CacheLookupResponse, wide: bool, io: &mut Io<'_>) -> Result<(), Failure> {
    let ids = found.token_ids.iter();
    let mut shown: Vec<String> = ids.take(SHOWN).map(ToString::to_string).collect();
    if found.token_ids.len() > SHOWN {
        shown.push("...".to_owned());
    }
    writeln!(io.out, "Model:    {}", plain(&found.model))?;
    writeln!(
        io.out,
        "Tokens:   {} ({}{}): {}",
        found.token_ids.len(),
        plain(&found.origin),
        if found.exact { "" } else { ", in part guessed" },
        shown.join(" ")
    )?;
    let sizes: std::collections::BTreeSet<(u32, u32)> = found
        .cached
        .iter()
        .filter(|of| of.block_tokens > 0)
        .map(|of| (of.blocks, of.block_tokens))
        .collect();
    for (blocks, tokens) in sizes {
        writeln!(io.out, "Blocks:   {blocks} of {tokens} tokens")?;
    }
    let prefixes: Vec<String> = found
        .prefixes
        .iter()
        .map(|prefix| format!("{} tokens {}", prefix.tokens, plain(&prefix.key)))
        .collect();
    // The longest says most; all of them are for whoever looks for one.
    let from = if wide {
        0
    } else {
        prefixes.len().saturating_sub(3)
    };
    for prefix in prefixes.iter().skip(from) {
        writeln!(io.out, "Prefix:   {prefix}")?;
    }
    writeln!(io.out)?;
    let mut table = Table::new(&[
        "ENDPOINT",
        "RANK",
        "CACHED TOKENS",
        "BLOCKS",
        "SHARE",
        "TIERS",
        "WORTH",
        "FIRST",
    ]);
    for of in &found.cached {
        let known = of.block_tokens > 0;
        let when = |text: String| if known { text } else { String::new() };
        table.row([
            of.endpoint.clone(),
            of.rank.to_string(),
            when(of.cached_tokens.to_string()),
            when(of.cached_blocks.to_string()),
            when(share(of.cached_tokens, found.token_ids.len() as u64)),
            match known {
                true => tiers_text(of.tiers.as_ref()),
                false => "nothing is known of its cache".to_owned(),
            },
            when(format!("{:.0}", of.worth)),
            if of.first { "yes" } else { "" }.to_owned(),
        ]);
    }
    table.write("", io.out)?;
    Ok(())
}

fn tree(found: &CacheLookupResponse) -> Tree {
    let mut tree = Tree::map();
    tree.put("node", found.node.as_str());
    tree.put("pool", found.pool.as_str());
    tree.put("model", found.model.as_str());
    tree.put("origin", found.origin.as_str());
    tree.put("exact", found.exact);
    tree.put("tokens", found.token_ids.len() as u64);
    tree.put(
        "tokenIds",
        found.token_ids.iter().copied().collect::<Tree>(),
    );
    let prefixes = found.prefixes.iter().map(|prefix| {
        let mut tree = Tree::map();
        tree.put("tokens", prefix.tokens);
        tree.put("key", prefix.key.as_str());
        tree
    });
    tree.put("prefixes", prefixes.collect::<Tree>());
    let all = found.token_ids.len() as u64;
    let cached = found.cached.iter().map(|of| cached_tree(of, all));
    tree.put("cached", cached.collect::<Tree>());
    tree
}

fn cached_tree(of: &CachedPrefix, all: u64) -> Tree {
    let mut tree = Tree::map();
    tree.put("endpoint", of.endpoint.as_str());
    tree.put("rank", of.rank);
    tree.put("known", of.block_tokens > 0);
    if of.block_tokens > 0 {
        tree.put("blockTokens", of.block_tokens);
        tree.put("blocks", of.blocks);
        tree.put("cachedBlocks", of.cached_blocks);
        tree.put("cachedTokens", of.cached_tokens);
        tree.put_some("share", ratio(of.cached_tokens, all));
        tree.put_some("tiers", tiers_tree(of.tiers.as_ref()));
        tree.put("worth", Tree::Float(of.worth));
    }
    tree.put("first", of.first);
    tree
}
