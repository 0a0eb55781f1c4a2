//! Checking and mending: nothing is found where nothing is wrong, everything where something is, and what redundancy allows is
//! as it was.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use basalt_engine::ObjectDraft;
use basalt_engine::extent::members::MemberState;
use basalt_engine::offline::OfflineError;
use basalt_engine::offline::check::{Fault, Remedy, Report, Structure};
use basalt_engine::offline::inspect::{Item, Place, What};
use basalt_engine::value::{self, Body, Object};
use basalt_reactor::sim::{Crash, Random};

use super::{Filled, LAYOUT, everything, object, only};
use crate::client::{BUCKET, Shared, check, run_client};
use crate::cluster::{Cluster, Layout};
use crate::damage::{CAPACITY, copy_len, rot};
use crate::seeds;

fn found(report: &Report) -> BTreeSet<Structure> {
    report.faults.iter().map(|fault| fault.structure).collect()
}

fn assert_clean(report: &Report) {
    assert!(report.is_clean(), "{:?}, missing {:?}", report.faults, report.missing);
}

#[test]
fn whatever_a_crash_leaves_is_no_fault() {
    let (mut formatted, mut unfinished, mut objects) = (0, 0, 0);
    for seed in seeds(30) {
        let mut random = Random::new(seed ^ 0xc4ec);
        let layout = Layout::draw(&mut random);
        let shared = Shared::new();
        shared.len_max.set(if random.below(6) == 0 { 3 << 20 } else { 300 << 10 });
        let mut filled = Filled { world: layout.world(seed, CAPACITY), shared, layout };
        for _ in 0..2 {
            let cores = filled.world.boot(1 + random.below(2) as u16);
            let (state, mut own) = (Rc::clone(&filled.shared), random.fork());
            let work = async move {
                let cluster = Cluster::start(cores, layout).await;
                check(&cluster, &state, &mut own).await;
                let mut running = Vec::new();
                for _ in 0..3 {
                    let engine = cluster.any(&mut own);
                    let task = run_client(engine.clone(), Rc::clone(&state), own.fork(), 400);
                    running.push(engine.core().spawn(task));
                }
                for client in running {
                    client.await.expect("nobody cancels a client");
                }
            };
            let most = if random.below(3) == 0 { 1200 } else { 25_000 };
            filled.world.run_events(random.below(most), work);
            filled.world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
            filled.world.run_until_idle();
            match filled.try_check(filled.paths(), false) {
                Ok(report) => {
                    assert_clean(&report);
                    formatted += 1;
                    unfinished += report.notes.len();
                    objects += report.object_count;
                }
                Err(OfflineError::Formatting | OfflineError::NoSuperblock { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }
    assert!(
        std::env::var_os("BASALT_SIM_SEED").is_some() || formatted > 0 && objects > 0,
        "{formatted} {unfinished} {objects}"
    );
}

#[test]
fn formatting_that_is_cut_off_is_no_fault() {
    let layout = Layout { shards: 1, sets: 2, ..Layout::of(2, 1, &mut Random::new(1)) };
    let (mut unfinished, mut finished) = (0, false);
    for events in (0..).step_by(3) {
        let mut filled = Filled { world: layout.world(1, CAPACITY), shared: Shared::new(), layout };
        let cores = filled.world.boot(1);
        let work = async move { drop(Cluster::start(cores, layout).await) };
        finished = filled.world.run_events(events, work).is_some();
        let crash = if events % 2 == 0 { Crash::PowerCut } else { Crash::Kill };
        filled.world.crash(crash);
        filled.world.run_until_idle();
        match filled.try_check(filled.paths(), false) {
            Ok(report) => {
                // What a power cut tore cannot be told from what is damaged; the other copy is whole.
                let is_torn = |fault: &Fault| fault.reason.contains("checksum") && crash == Crash::PowerCut;
                assert!(report.faults.iter().all(is_torn), "after {events} events: {:?}", report.faults);
                unfinished += report.notes.iter().filter(|note| note.contains("formatting")).count();
            }
            Err(OfflineError::Formatting | OfflineError::NoSuperblock { .. }) => {}
            Err(error) => panic!("after {events} events: {error}"),
        }
        if finished {
            break;
        }
    }
    assert!(finished && unfinished > 0);
}

/// Uploads that are open, completed and aborted, cut off anywhere: no byte is counted twice, none is forgotten.
#[test]
fn uploads_in_any_state_add_up() {
    let mut parts = 0;
    for seed in seeds(15) {
        let mut random = Random::new(seed ^ 0x0b10);
        let layout = Layout::of(2, 1, &mut random);
        let mut filled = Filled { world: layout.world(seed, CAPACITY), shared: Shared::new(), layout };
        let cores = filled.world.boot(2);
        let mut own = random.fork();
        let work = async move {
            let cluster = Cluster::start(cores, layout).await;
            let engine = &cluster.engines[0];
            let bucket = engine.create_bucket(BUCKET, Vec::new()).await.expect("it is new").id;
            for turn in 0_u8..6 {
                let upload =
                    engine.create_upload(bucket, b"key", Vec::new(), 0, false).await.expect("it opens");
                for number in [1, 2, 7] {
                    // Long enough now and then that its checksums spill.
                    let len = if own.below(5) == 0 { 2_500_000 } else { own.below(200_000) as usize + 1 };
                    let mut writer = engine.write_part(bucket, b"key", None).for_part(upload, number);
                    writer.write(&vec![turn; len]).await.expect("there is room");
                    let body = writer.finish().await.expect("no device fails");
                    let put = engine.put_part(bucket, b"key", upload, number, [0; 16], None, body);
                    put.await.expect("it is open");
                }
                match own.below(3) {
                    0 => {}
                    1 => engine.abort_upload(bucket, b"key", upload).await.expect("it is open"),
                    _ => {
                        let (_, mut all) =
                            engine.all_parts(bucket, b"key", upload).await.expect("it is open");
                        all.truncate(2);
                        let draft = ObjectDraft::default();
                        let completed = engine.complete_upload(bucket, b"key", upload, draft, all, None);
                        completed.await.expect("all are there");
                    }
                }
                if own.coin() {
                    engine.checkpoint().await.expect("there is room");
                }
            }
        };
        filled.world.run_events(random.below(6000), work);
        filled.world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        filled.world.run_until_idle();
        match filled.try_check(filled.paths(), false) {
            Ok(report) => {
                assert_clean(&report);
                parts += report.part_count;
            }
            Err(OfflineError::Formatting | OfflineError::NoSuperblock { .. }) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(parts > 0 || std::env::var_os("BASALT_SIM_SEED").is_some());
}

#[test]
fn disks_that_rot_all_over_are_mended() {
    let (mut mended, mut kinds) = (0, BTreeSet::new());
    for seed in seeds(12) {
        let mut random = Random::new(seed ^ 0x4071);
        let (k, m) = [(1, 1), (2, 1), (2, 2), (1, 2)][random.below(4) as usize];
        let layout = Layout::of(k, m, &mut random);
        let mut filled = Filled::new(seed, layout, random.coin());
        assert_clean(&filled.check(filled.paths(), false));
        let mut names = layout.disk_names();
        for _ in 0..m {
            let name = names.remove(random.below(names.len() as u64) as usize);
            rot(&filled.world.disk(&name), &copy_len, &mut random, 200);
        }
        let report = filled.check(filled.paths(), false);
        assert_eq!(report.mended_count, 0);
        let repaired = filled.check(filled.paths(), true);
        let unmended =
            repaired.faults.iter().filter(|fault| fault.remedy != Remedy::Mended).collect::<Vec<_>>();
        assert!(unmended.is_empty(), "seed {seed}: {unmended:?}");
        // What mending a batch mends of the objects in it is not found again.
        assert!(repaired.fault_count > 0 && repaired.fault_count <= report.fault_count, "seed {seed}");
        assert_clean(&filled.check(filled.paths(), false));
        filled.serves_what_it_should(seed);
        mended += repaired.mended_count;
        kinds.extend(found(&repaired));
    }
    println!("{mended} faults mended: {kinds:?}");
    for kind in [
        Structure::Superblock,
        Structure::Root,
        Structure::LogHeader,
        Structure::LogBatch,
        Structure::Table,
        Structure::Data,
        Structure::Parity,
        Structure::DirectoryChunk,
    ] {
        assert!(
            kinds.contains(&kind) || std::env::var_os("BASALT_SIM_SEED").is_some(),
            "no {kind:?} was met"
        );
    }
}

/// One place of each kind of structure that matters, on disks 1 and 2.
fn targets(filled: &mut Filled) -> Vec<(Structure, Place, u64)> {
    let items = filled.inspect(filled.paths(), everything());
    let mut targets = Vec::new();
    let on = |place: &Place| [1, 2].contains(&place.disk.0);
    let mut add = |structure, place: Option<&Place>, within: u64| {
        targets.push((structure, place.expect("there is one").clone(), within));
    };
    add(
        Structure::Root,
        items.iter().find_map(|item| match item {
            Item::Root { place, .. } if on(place) => Some(place),
            _ => None,
        }),
        100,
    );
    add(
        Structure::Manifest,
        items.iter().find_map(|item| match item {
            Item::ManifestReplica { place, .. } if on(place) => Some(place),
            _ => None,
        }),
        10,
    );
    add(
        Structure::LogHeader,
        items.iter().find_map(|item| match item {
            Item::LogHeader { place, .. } if on(place) => Some(place),
            _ => None,
        }),
        30,
    );
    // Not the last one: that could be one that nobody was told of.
    add(
        Structure::LogBatch,
        items.iter().find_map(|item| match item {
            Item::Batch { place, header, .. } if on(place) && header.record_count > 0 => Some(place),
            _ => None,
        }),
        130,
    );
    for kind in ["header", "data", "filter", "directory"] {
        add(
            Structure::Table,
            items.iter().find_map(|item| match item {
                Item::TableFrame { place, kind: of, .. } if on(place) && *of == kind => Some(place),
                _ => None,
            }),
            40,
        );
    }
    targets
}

#[test]
fn each_kind_of_structure_is_found_and_mended() {
    let mut filled = Filled::new(3, LAYOUT, true);
    for (structure, place, within) in targets(&mut filled) {
        let disk = filled.world.disk(&place.path.display().to_string());
        for unreadable in [false, true] {
            if unreadable {
                disk.make_unreadable(&place.file, place.offset + within, 1);
            } else {
                disk.corrupt(&place.file, place.offset + within, 4);
            }
            for (repair, remedy) in [(false, Remedy::Mendable), (true, Remedy::Mended)] {
                let report = filled.check(filled.paths(), repair);
                let faults =
                    report.faults.iter().filter(|fault| fault.structure == structure).collect::<Vec<_>>();
                assert_eq!(faults.len(), 1, "{place:?}: {:?}", report.faults);
                let (fault, at) = (faults[0], faults[0].place.as_ref().expect("it is one disk's"));
                assert_eq!((at.disk, &at.file), (place.disk, &place.file));
                assert!((at.offset..at.offset + fault.len).contains(&(place.offset + within)), "{fault}");
                assert_eq!(fault.remedy, remedy, "{fault}");
            }
            assert_clean(&filled.check(filled.paths(), false));
        }
    }
    filled.serves_what_it_should(3);
}

#[test]
fn a_disk_without_any_of_its_superblocks_is_known_by_the_others() {
    let mut filled = Filled::new(4, LAYOUT, true);
    let disk = filled.world.disk("disk3");
    disk.corrupt("superblock", 50, 1);
    disk.corrupt("superblock", 65_536 + 50, 1);
    let report = filled.check(filled.paths(), true);
    assert_eq!((report.fault_count, report.mended_count), (2, 2), "{:?}", report.faults);
    assert_clean(&filled.check(filled.paths(), false));
    filled.serves_what_it_should(4);
}

#[test]
fn files_that_are_gone_come_back() {
    let mut filled = Filled::new(5, LAYOUT, true);
    let core = filled.world.boot(1).remove(0);
    filled.world.run(async move {
        let disk = basalt_reactor::Disk::open(&core, std::path::Path::new("disk1")).expect("it opens");
        for kind in ["root", "log", "data", "table"] {
            disk.remove_file(&format!("shard-0001.{kind}")).expect("it was there");
        }
        disk.sync().await.expect("the device is sound");
    });
    filled.world.crash(Crash::Kill);
    let report = filled.check(filled.paths(), true);
    assert!(report.mended_count > 6 && report.unmended_count == 0, "{:?}", report.faults);
    assert_clean(&filled.check(filled.paths(), false));
    filled.serves_what_it_should(5);
}

#[test]
fn missing_disks_are_said_and_the_others_checked() {
    let mut filled = Filled::new(6, LAYOUT, true);
    let present = || vec!["disk0".into(), "disk2".into(), "disk3".into()];
    let report = filled.check(present(), false);
    assert_eq!((report.missing.len(), report.fault_count), (1, 0), "{:?}", report.faults);
    assert!(!report.is_clean() && report.object_count > 0);
    // One disk more may be damaged, and is mended without the missing one.
    let mut random = Random::new(1);
    rot(&filled.world.disk("disk2"), &copy_len, &mut random, 100);
    let report = filled.check(present(), true);
    assert!(report.mended_count > 0 && report.unmended_count == 0, "{:?}", report.faults);
    assert_clean(&filled.check(filled.paths(), false));
    // Of one disk alone nothing can be restored, but it can be said what is lost.
    let report = filled.check(vec!["disk0".into()], false);
    assert_eq!(report.missing.len(), 3);
    assert!(report.faults.iter().all(|fault| matches!(fault.remedy, Remedy::None(_))), "{:?}", report.faults);
}

#[test]
fn what_redundancy_cannot_mend_is_named_with_its_owner() {
    let mut filled = Filled::new(7, LAYOUT, true);
    let keys = filled.shared.model.borrow().keys();
    let striped = keys.iter().find_map(|key| {
        let found = filled.inspect(filled.paths(), object(BUCKET, key));
        found.into_iter().find_map(|item| match item {
            Item::Object { shard, value, places, .. } => match value::decode::<Object>(&value).ok()?.body {
                Body::Striped(striped) => Some((key.clone(), shard, striped.segments[0], places)),
                _ => None,
            },
            _ => None,
        })
    });
    let (key, shard, segment, places) = striped.expect("somebody has a body in stripes");
    let place = places.iter().find(|place| place.id.0 == segment.extent).expect("it has a place");
    for column in &place.columns[..3] {
        let offset =
            u64::from(column.slot) * LAYOUT.geometry().data_slot_len + u64::from(segment.block) * 4096;
        let disk = filled.world.disk(&format!("disk{}", column.disk.0));
        disk.corrupt(&format!("shard-{shard:04}.data"), offset + 9, 1);
    }
    let report = filled.check(filled.paths(), true);
    assert_eq!((report.fault_count, report.unmended_count), (3, 3), "{:?}", report.faults);
    for fault in &report.faults {
        let owner = fault.owner.as_ref().expect("it is known whose bytes they are");
        assert_eq!((owner.key.as_slice(), owner.bucket.as_deref()), (key.as_bytes(), Some(BUCKET)));
        assert!(matches!(fault.remedy, Remedy::None(_)));
    }
}

#[test]
fn a_damaged_log_beyond_its_replicas_is_said() {
    let mut filled = Filled::new(
        8,
        Layout { k: 1, m: 0, sets: 1, metadata: 0, spare: 0, shards: 1, strip_len: 4096 },
        false,
    );
    let items = filled.inspect(filled.paths(), only(What::Log, None));
    let batches = items.iter().filter_map(|item| match item {
        Item::Batch { place, header, .. } => Some((header.sequence, place)),
        _ => None,
    });
    let batches = batches.collect::<Vec<_>>();
    let (_, place) = batches[batches.len() - 3];
    filled.world.disk("disk0").corrupt(&place.file, place.offset + 20, 1);
    let report = filled.check(filled.paths(), true);
    assert!(found(&report).contains(&Structure::LogBatch), "{:?}", report.faults);
    assert!(report.unmended_count > 0);
}

/// The batch that names the next log extent is damaged, with all that follow it in its own: the log seems to end there.
#[test]
fn batches_that_the_log_does_not_lead_to_are_said() {
    let layout = Layout { k: 1, m: 0, sets: 1, metadata: 0, spare: 0, shards: 1, strip_len: 4096 };
    let mut reached = false;
    for seed in 0..40 {
        let mut filled = Filled::new(seed, layout, false);
        let items = filled.inspect(filled.paths(), only(What::Log, None));
        let batches = items.iter().filter_map(|item| match item {
            Item::Batch { place, header, .. } => Some((header, place)),
            _ => None,
        });
        let mut batches = batches.collect::<Vec<_>>();
        batches.sort_by_key(|(header, _)| header.sequence);
        let Some(last) = batches.last().map(|(header, _)| header.extent) else { continue };
        let Some(next) = batches.iter().position(|(header, _)| header.extent == last) else { continue };
        let Some(before) = next.checked_sub(1).map(|index| batches[index].0.extent) else { continue };
        let before: Vec<_> = batches.iter().filter(|(header, _)| header.extent == before).collect();
        for (_, place) in before {
            filled.world.disk("disk0").corrupt(&place.file, place.offset + 20, 1);
        }
        let report = filled.check(filled.paths(), true);
        let said = |text: &str| report.faults.iter().any(|fault| format!("{fault:?}").contains(text));
        // Under a root in the last extent nobody misses them.
        if !said("LogBatch") {
            continue;
        }
        reached |= said("did not lead to");
    }
    assert!(reached, "no log went on behind its root in another extent");
}

/// A disk that was away holds what was true before, with whole checksums. Whatever the tools do, none of it is believed, and none of
/// it gets anywhere else: not while it is out, and not while it is being rebuilt.
#[test]
fn what_a_disk_holds_that_was_away_is_never_believed() {
    let (mut behind, mut out, mut mended) = (0, 0, 0);
    for seed in seeds(10) {
        let mut random = Random::new(seed ^ 0x57a1e);
        let layout = Layout::of(2, 2, &mut random);
        let mut filled = Filled::new(seed, layout, random.coin());
        let names = layout.disk_names();
        let away = random.below(names.len() as u64) as usize;
        let disk = filled.world.disk(&names[away]);
        let returns = random.coin();
        let cores = filled.world.boot(1 + random.below(2) as u16);
        let (state, mut own, handle) = (Rc::clone(&filled.shared), random.fork(), disk.clone());
        filled.world.run(async move {
            let cluster = Cluster::start(cores, layout).await;
            handle.unplug();
            let mut running = Vec::new();
            for _ in 0..2 {
                let engine = cluster.any(&mut own);
                let task = run_client(engine.clone(), Rc::clone(&state), own.fork(), 60);
                running.push(engine.core().spawn(task));
            }
            for client in running {
                client.await.expect("nobody cancels a client");
            }
            cluster.any(&mut own).checkpoint().await.expect("there is room");
            let core = cluster.engines[0].core().clone();
            while cluster.engines[0].members()[away] != MemberState::Out {
                core.sleep(Duration::from_millis(100)).await;
            }
            if returns {
                // Caught in the middle of its rebuilding, if there is time.
                handle.plug();
                while cluster.engines[0].members()[away] == MemberState::Out {
                    core.sleep(Duration::from_millis(1)).await;
                }
            }
        });
        filled.world.crash(if random.coin() { Crash::PowerCut } else { Crash::Kill });
        disk.plug();
        filled.world.run_until_idle();
        let stale = filled.check(filled.paths(), false);
        assert_eq!(stale.faults, [], "seed {seed}: what a disk lacks that is not counted on is no fault");
        match stale.strangers.as_slice() {
            [] => assert!(returns, "seed {seed}: it is out"),
            [(path, reason)] => {
                assert!(path.ends_with(&names[away]) && reason.contains("stale"), "seed {seed}: {reason}");
                behind += u64::from(returns);
                out += u64::from(!returns);
            }
            others => panic!("seed {seed}: {others:?}"),
        }
        // One more copy is bad than those that are believed: the stale disk would have another, with a checksum that holds.
        let rotten = (away + 1 + random.below(3) as usize) % names.len();
        rot(&filled.world.disk(&names[rotten]), &copy_len, &mut random, 60);
        let contents = |file: String| {
            let bytes = disk.read(&file, 0, disk.file_len(&file).unwrap_or(0) as usize);
            (file, bytes)
        };
        let before: Vec<(String, Vec<u8>)> = disk.files().into_iter().map(contents).collect();
        let report = filled.check(filled.paths(), true);
        assert!(
            report.faults.iter().all(|fault| fault.remedy == Remedy::Mended),
            "seed {seed}: {:?}",
            report.faults
        );
        mended += report.fault_count;
        if !stale.strangers.is_empty() {
            for (file, bytes) in before {
                let now = disk.read(&file, 0, bytes.len());
                assert!(now == bytes, "seed {seed}: {file}: what is not believed is not written to either");
            }
        }
        filled.serves_what_it_should(seed);
    }
    let all = behind > 0 && out > 0 && mended > 0;
    assert!(all || std::env::var_os("BASALT_SIM_SEED").is_some(), "{behind} {out} {mended}");
}
