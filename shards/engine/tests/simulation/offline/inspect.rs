//! Looking at sound disks, at damaged ones, at one of several, and beside a running engine.

use basalt_engine::offline::inspect::{Item, What, inspect};
use basalt_engine::value::{self, Object};

use super::{Filled, LAYOUT, everything, object, only};
use crate::client::BUCKET;
use crate::cluster::Cluster;

/// What an item says is wrong, if it says so.
fn defect(item: &Item) -> Option<String> {
    match item {
        Item::Superblock { found: Err(defect), .. }
        | Item::Root { found: Err(defect), .. }
        | Item::ShardLost { defect, .. }
        | Item::ManifestReplica { defect: Some(defect), .. }
        | Item::Manifest { index: Err(defect), .. }
        | Item::LogHeader { found: Err(defect), .. }
        | Item::Batch { records: Err(defect), .. }
        | Item::Unreadable { defect, .. }
        | Item::TableLost { defect, .. }
        | Item::TableFrame { defect: Some(defect), .. }
        | Item::Chunk { found: Err(defect), .. } => Some(defect.to_string()),
        Item::Stranger { reason, .. } => Some(reason.clone()),
        Item::LogEnd { defects, .. } => defects.first().cloned(),
        _ => None,
    }
}

#[test]
fn shows_every_structure_of_a_sound_deployment_and_no_defect() {
    let mut filled = Filled::new(1, LAYOUT, true);
    let items = filled.inspect(filled.paths(), everything());
    assert_eq!(items.iter().find_map(defect), None);
    let count = |is: fn(&Item) -> bool| items.iter().filter(|item| is(item)).count();
    assert_eq!(count(|item| matches!(item, Item::Superblock { found: Ok(_), .. })), 8);
    assert_eq!(count(|item| matches!(item, Item::Root { found: Ok(_), .. })), 16);
    assert_eq!(count(|item| matches!(item, Item::Manifest { .. })), 2);
    assert!(count(|item| matches!(item, Item::Batch { .. })) > 10);
    assert!(count(|item| matches!(item, Item::TableFrame { .. })) > 10);
    assert!(count(|item| matches!(item, Item::Chunk { .. })) > 4);
    // Every object of the model is among the entries.
    let keys = filled.shared.model.borrow().keys();
    for key in keys {
        let found = filled.inspect(filled.paths(), object(BUCKET, &key));
        let lens = found.iter().filter_map(|item| match item {
            Item::Object { value, .. } => value::decode::<Object>(value).ok().map(|object| object.len),
            _ => None,
        });
        let known = filled.shared.model.borrow_mut().certain(&key).expect("nobody is at it");
        let known = known.map(|content| content.len as u64).into_iter().collect::<Vec<_>>();
        assert_eq!(lens.collect::<Vec<_>>(), known, "{key}");
    }
    let nothing = filled.inspect(filled.paths(), object(BUCKET, "no such key"));
    assert!(matches!(nothing[..], [Item::NoSuchKey]), "{nothing:?}");
    let nothing = filled.inspect(filled.paths(), object("no-such-bucket", "key"));
    assert!(matches!(nothing[..], [Item::NoSuchBucket]), "{nothing:?}");
}

#[test]
fn says_what_is_wrong_where_it_is_wrong_and_goes_on() {
    let mut filled = Filled::new(2, LAYOUT, true);
    let sound = filled.inspect(filled.paths(), everything()).len();
    let disk = filled.world.disk("disk1");
    disk.corrupt("superblock", 65_536 + 100, 1);
    disk.corrupt("shard-0001.root", 100, 1);
    let items = filled.inspect(filled.paths(), everything());
    assert_eq!(items.len(), sound, "nothing else is hidden by them");
    let wrong = items.iter().filter(|item| defect(item).is_some()).collect::<Vec<_>>();
    assert!(
        matches!(wrong[..], [Item::Superblock { copy: 1, .. }, Item::Root { shard: 1, copy: 0, .. }]),
        "{wrong:?}"
    );
    // Each batch of one replica, broken in its records: the others are still found.
    let log = only(What::Log, None);
    let items = filled.inspect(filled.paths(), log.clone());
    let batches = items.iter().filter(|item| matches!(item, Item::Batch { .. })).count();
    let place = items.iter().find_map(|item| match item {
        Item::Batch { place, .. } => Some(place.clone()),
        _ => None,
    });
    let place = place.expect("there are batches");
    let disk = filled.world.disk(&place.path.display().to_string());
    disk.corrupt(&place.file, place.offset + 130, 1);
    let items = filled.inspect(filled.paths(), log.clone());
    assert_eq!(items.iter().filter(|item| matches!(item, Item::Batch { .. })).count(), batches);
    let wrong = items.iter().filter(|item| defect(item).is_some()).collect::<Vec<_>>();
    assert!(matches!(wrong[..], [Item::Batch { .. }]), "{wrong:?}");
    disk.make_unreadable(&place.file, place.offset, 512);
    let items = filled.inspect(filled.paths(), log);
    let wrong = items.iter().filter(|item| defect(item).is_some()).collect::<Vec<_>>();
    assert!(matches!(wrong[..], [Item::Unreadable { .. }]), "{wrong:?}");
}

#[test]
fn one_disk_alone_is_enough_to_look_at() {
    let mut filled = Filled::new(3, LAYOUT, true);
    let items = filled.inspect(vec!["disk2".into()], everything());
    assert_eq!(items.iter().filter(|item| matches!(item, Item::Missing { .. })).count(), 3);
    assert!(items.iter().any(|item| matches!(item, Item::Chunk { .. })));
    assert!(items.iter().any(|item| matches!(item, Item::Root { found: Ok(_), .. })));
}

#[test]
fn a_running_engine_does_not_mind() {
    let mut filled = Filled::new(4, LAYOUT, false);
    let cores = filled.world.boot(1);
    let (core, paths, layout) = (cores[0].clone(), filled.paths(), filled.layout);
    filled.world.run(async move {
        let cluster = Cluster::start(cores, layout).await;
        let mut count = 0;
        inspect(&core, &paths, &everything(), &mut |_| count += 1).await.expect("the disks open");
        assert!(count > 20);
        let bucket = cluster.engines[0].buckets().get(BUCKET).expect("it is there").id;
        cluster.engines[0].delete_bucket(BUCKET).await.expect_err("it is not empty");
        assert!(cluster.engines[0].open(bucket, b"no such key").await.expect("it reads").is_none());
    });
}
