//! Directory chunks that no column has any more: readers miss nothing, so it must be looked for, said, and made good before the
//! index is lost as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use basalt_engine::Engine;
use basalt_engine::offline::check::{Remedy, Structure};
use basalt_engine::offline::inspect::{Item, What};
use basalt_engine::offline::rebuild::{Entry, Fate, Line, RebuildOptions, rebuild};
use basalt_reactor::sim::{Crash, Random};

use super::moved::moved;
use super::packs::packed;
use super::{Filled, only};
use crate::cluster::Cluster;

/// Within which everything is to be verified.
const DEADLINE: Duration = Duration::from_secs(2);

/// Disk, file and offset of each copy of a chunk.
type Copies = Vec<(String, String, u64)>;

/// Overwrites a third of all directory chunks, and of each of those every copy.
fn lose_chunks(filled: &mut Filled, random: &mut Random) {
    let mut places: BTreeMap<(u16, u64, u32), Copies> = BTreeMap::new();
    for item in filled.inspect(filled.paths(), only(What::Directory, None)) {
        let Item::Chunk { place, shard, extent, found: Ok(chunk) } = item else { continue };
        let disk = place.path.display().to_string();
        places.entry((shard, extent.0, chunk.block)).or_default().push((disk, place.file, place.offset));
    }
    for copies in places.into_values() {
        if random.below(3) > 0 {
            continue;
        }
        for (disk, file, offset) in copies {
            filled.world.disk(&disk).overwrite(&file, offset, &vec![0x3c; 4096]);
        }
    }
}

/// Lets the server scrub all it has once; says how many pieces it repaired.
fn scrubbed(filled: &mut Filled) -> u64 {
    let (cores, layout) = (filled.world.boot(1), filled.layout);
    let repaired = filled.world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let core = cluster.engines[0].core().clone();
        cluster.engines.iter().for_each(|engine| engine.start_scrub(DEADLINE));
        let stats =
            || cluster.engines.iter().flat_map(Engine::stats).map(|(_, stats)| stats).collect::<Vec<_>>();
        let limit = core.now() + 5 * DEADLINE;
        while stats().iter().any(|stats| stats.scrub.rounds == 0) {
            assert!(core.now() < limit, "a round takes too long: {:?}", stats());
            core.sleep(DEADLINE / 10).await;
        }
        assert_eq!(stats().iter().map(|stats| stats.repair.unrepairable).sum::<u64>(), 0);
        cluster.engines[0].checkpoint().await.expect("there is room");
        stats().iter().map(|stats| stats.repair.repaired).sum()
    });
    filled.world.crash(Crash::PowerCut);
    filled.world.run_until_idle();
    repaired
}

/// What comes back from data extents alone.
fn rebuilt(filled: &mut Filled) -> BTreeSet<String> {
    for name in filled.layout.disk_names() {
        let disk = filled.world.disk(&name);
        for file in
            disk.files().into_iter().filter(|file| file.starts_with("shard") && !file.ends_with(".data"))
        {
            disk.overwrite(&file, 0, &vec![0; disk.file_len(&file).unwrap_or(0) as usize]);
        }
    }
    let (core, paths) = (filled.world.boot(1).remove(0), filled.paths());
    filled.world.run(async move {
        let (options, mut recovered) = (RebuildOptions { force: false, etags: true }, BTreeSet::new());
        let mut report = |line: &Line| {
            if let Line::Entry(Entry { name, fate: Fate::Recovered(_), .. }) = line {
                recovered.insert(String::from_utf8_lossy(name).into_owned());
            }
        };
        let summary = rebuild(&core, &paths, &options, &mut report).await.expect("it rebuilds");
        assert_eq!(summary.damaged, 0);
        recovered
    })
}

fn lost_and_made_anew(mut filled: Filled, names: BTreeSet<String>, seed: u64) {
    lose_chunks(&mut filled, &mut Random::new(seed));
    let report = filled.check(filled.paths(), true);
    assert!(report.fault_count > 1, "{:?}", report.faults);
    for fault in &report.faults {
        assert_eq!(fault.structure, Structure::LostChunk, "{fault}");
        assert!(matches!(fault.remedy, Remedy::None(_)), "{fault}");
    }
    let repaired = scrubbed(&mut filled);
    // Some may have been moved away before their turn came.
    assert!(repaired >= 2, "{repaired} for {} lost", report.fault_count);
    let report = filled.check(filled.paths(), false);
    assert!(report.is_clean(), "{:?}", report.faults);
    let recovered = rebuilt(&mut filled);
    assert!(names.is_subset(&recovered), "{:?}", names.difference(&recovered).collect::<Vec<_>>());
}

#[test]
fn chunks_that_no_column_has_are_said_and_made_anew() {
    for seed in 1..4 {
        let (filled, truth) = moved(seed);
        lost_and_made_anew(filled, truth.into_keys().collect(), seed);
        let (filled, truth) = packed(seed);
        lost_and_made_anew(filled, truth.into_keys().collect(), seed);
    }
}
