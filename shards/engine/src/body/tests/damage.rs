//! Damage of every kind: up to m columns of a stripe nobody notices but the report; beyond that it is an error, and
//! never a wrong byte.

use super::*;
use crate::body::layout::StripeShape;
use crate::checksum::crc32c;

/// Harms the block at `offset` of a column in a random way.
fn harm(rig: &mut Rig, column: Column, offset: u64) {
    let disk = rig.disk(column.disk);
    let place = rig.place(column, offset);
    match rig.random.below(4) {
        0 => disk.corrupt("data", place + rig.random.below(4096), 1 << rig.random.below(8)),
        1 => disk.make_unreadable("data", place, 512),
        2 => disk.overwrite("data", place, &[0; 4096]),
        _ => {
            let other = disk.read("data", place ^ 4096, 4096);
            let own = disk.read("data", place, 4096);
            if other == own {
                disk.corrupt("data", place, 1);
            } else {
                disk.overwrite("data", place, &other);
            }
        }
    }
}

/// Harms `count` columns of every stripe of the body, each in one place; says how many data columns were hit.
fn harm_stripes(rig: &mut Rig, body: &StripedBody, count: u64) -> usize {
    let shape = StripeShape::new(&rig.geometry);
    let columns = rig.geometry.columns() as u64;
    let mut data_hits = 0;
    for segment in &body.segments {
        let placement = rig.lessor.placement(segment.extent);
        let mut at = 0;
        while at < segment.len {
            let stripe = shape.stripe_at(segment.len, at);
            // The same block in all columns, so that the damages of a stripe add up.
            let block = rig.random.below(stripe.strip_len / 4096) * 4096;
            let first = rig.random.below(columns);
            for index in (first..first + count).map(|index| (index % columns) as usize) {
                data_hits += usize::from(index < usize::from(rig.geometry.k));
                let offset = u64::from(segment.block) * 4096 + stripe.column_offset + block;
                harm(rig, placement.columns[index], offset);
            }
            at += stripe.len;
        }
    }
    data_hits
}

#[test]
fn up_to_m_bad_columns_are_read_around() {
    let shapes =
        [(1, 2, 65_536), (2, 1, 65_536), (2, 1, 8192), (4, 2, 16_384), (4, 2, 131_072), (3, 3, 65_536)];
    for (seed, (k, m, strip_len)) in shapes.into_iter().cycle().take(18).enumerate() {
        let mut rig = Rig::new(seed as u64, geometry(k, m, strip_len), 16 << 20);
        let len = 1 + rig.random.below(1 << 20);
        let bytes = rig.bytes(len as usize);
        let body = rig.write(&bytes, Some(len)).expect("writes").body;
        let data_hits = harm_stripes(&mut rig, &body, u64::from(m));
        assert!(rig.read(&body, 0..len).expect("reads") == bytes, "seed {seed}");
        let damages = rig.damages.take();
        if data_hits > 0 {
            assert!(!damages.is_empty() || len < 4096 * u64::from(k), "{data_hits} hits went unreported");
        }
        for damage in &damages {
            let place = rig.place(
                rig.lessor.placement(damage.extent).columns[usize::from(damage.column)],
                damage.offset,
            );
            assert_eq!(
                rig.lessor.placement(damage.extent).columns[usize::from(damage.column)].disk,
                damage.disk
            );
            if let Fault::Checksum { got, .. } = damage.fault {
                let found = rig.disk(damage.disk).read("data", place, damage.len as usize);
                assert_eq!(crc32c(&found), got, "the report names the wrong place");
            }
        }
        for _ in 0..3 {
            let (a, b) = (rig.random.below(len + 1), rig.random.below(len + 1));
            let range = a.min(b)..a.max(b);
            let read = rig.read(&body, range.clone()).expect("reads");
            assert!(read == bytes[range.start as usize..range.end as usize]);
        }
        // What was asked besides what sufficed.
        rig.world.run_until_idle();
        assert_eq!(rig.core.arena().usage().used, 0);
    }
}

#[test]
fn beyond_m_it_is_lost_but_never_wrong() {
    let mut lost = 0;
    for (seed, (k, m, strip_len)) in [(1, 0, 65_536), (1, 1, 4096), (2, 1, 65_536), (4, 2, 16_384)]
        .into_iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        let mut rig = Rig::new(seed as u64, geometry(k, m, strip_len), 16 << 20);
        let len = 1 + rig.random.below(1 << 20);
        let bytes = rig.bytes(len as usize);
        let body = rig.write(&bytes, Some(len)).expect("writes").body;
        harm_stripes(&mut rig, &body, u64::from(m) + 1);
        match rig.read(&body, 0..len) {
            Ok(read) => assert!(read == bytes, "wrong bytes left"),
            Err(BodyError::Lost { faults, .. }) => {
                lost += 1;
                assert!(!faults.is_empty());
            }
            Err(other) => panic!("{other}"),
        }
        rig.world.run_until_idle();
        assert_eq!(rig.core.arena().usage().used, 0);
    }
    assert!(lost >= 10, "only {lost} of 12 bodies noticed");
}

/// One data block and one parity block of the same stripe: the first choice of parity gives a wrong block, the second
/// the right one, and both damages are reported.
#[test]
fn bad_parity_is_found_by_trying_others() {
    let mut rig = Rig::new(1, geometry(4, 2, 65_536), 16 << 20);
    let bytes = rig.bytes(4 * 65_536);
    let body = rig.write(&bytes, Some(bytes.len() as u64)).expect("writes").body;
    let placement = rig.lessor.placement(body.segments[0].extent);
    for index in [2, 4] {
        rig.disk(placement.columns[index].disk).corrupt("data", rig.place(placement.columns[index], 9000), 1);
    }
    assert!(rig.read(&body, 0..body.len).expect("reads") == bytes);
    let mut columns: Vec<u8> = rig.damages.take().iter().map(|damage| damage.column).collect();
    columns.sort_unstable();
    assert_eq!(columns, [2, 4]);
}

/// One bad sector fails a long read; the other blocks of that read are fetched alone, and their redundancy is not
/// needed.
#[test]
fn a_bad_sector_costs_its_own_block_only() {
    let mut rig = Rig::new(4, geometry(1, 0, 65_536), 16 << 20);
    rig.lessor.generous.set(true);
    let bytes = rig.bytes(600_000);
    let body = rig.write(&bytes, Some(600_000)).expect("writes").body;
    assert_eq!(body.segments.len(), 1);
    let placement = rig.lessor.placement(body.segments[0].extent);
    let place = rig.place(placement.columns[0], u64::from(body.segments[0].block) * 4096 + 3 * 65_536);
    rig.disk(placement.columns[0].disk).make_unreadable("data", place, 512);
    let (bodies, body) = (Rc::clone(&rig.bodies), Rc::new(body));
    let (places, on_damage) = (rig.lessor.places(), rig.on_damage());
    rig.world.run(async move {
        let mut reader = bodies.reader(body, 0..600_000, places, on_damage, None).expect("valid");
        let mut read = Vec::new();
        let error = loop {
            match reader.next().await.expect("an error comes before the end") {
                Ok(slice) => read.extend_from_slice(&slice),
                Err(error) => break error,
            }
        };
        assert!(read == bytes[..3 * 65_536] && matches!(error, BodyError::Lost { .. }), "{error}");
    });
}

#[test]
fn absent_disks_are_read_around() {
    let mut rig = Rig::new(2, geometry(4, 2, 65_536), 16 << 20);
    let bytes = rig.bytes(1_500_000);
    let body = rig.write(&bytes, None).expect("writes").body;
    rig.reopen(&[0, 3]);
    assert!(rig.read(&body, 0..body.len).expect("reads") == bytes);
    assert!(rig.damages.borrow().is_empty(), "an absent disk is no damage");
    assert!(rig.bodies.core.restored() > 0, "but it is counted");
    rig.reopen(&[0, 3, 4]);
    assert!(matches!(rig.read(&body, 0..body.len), Err(BodyError::Lost { .. })));
}

/// Recovering takes memory that read-ahead may hold; with several readers in a tight arena all of them end.
#[test]
fn recovery_in_a_small_arena_ends() {
    let lens = [7 * 65_536, 9 * 65_536, 1 << 20, 2 << 20];
    for (seed, arena_len) in (0..8).zip(lens.into_iter().flat_map(|len| [len, len])) {
        let mut rig = Rig::new(seed, geometry(4, 2, 65_536), arena_len);
        let bytes = rig.bytes(700_000);
        let body = Rc::new(rig.write(&bytes, None).expect("writes").body);
        if seed % 2 == 0 {
            rig.reopen(&[1, 4]);
        } else {
            harm_stripes(&mut rig, &body, 2);
        }
        let (core, bodies) = (rig.core.clone(), Rc::clone(&rig.bodies));
        let (places, on_damage) = (rig.lessor.places(), rig.on_damage());
        rig.world.run(async move {
            let tasks: Vec<_> = (0..5)
                .map(|_| {
                    let (bodies, body) = (Rc::clone(&bodies), Rc::clone(&body));
                    let (places, on_damage) = (Rc::clone(&places), Rc::clone(&on_damage));
                    core.spawn(async move {
                        let len = body.len;
                        read(&bodies, body, 0..len, places, on_damage).await
                    })
                })
                .collect();
            for task in tasks {
                assert!(task.await.expect("not cancelled").expect("reads") == bytes);
            }
        });
        rig.world.run_until_idle();
        assert_eq!(rig.core.arena().usage().used, 0);
        assert_eq!(rig.bodies.core.budget.used(), 0);
    }
}

#[test]
fn a_description_of_unknown_extents_is_an_error() {
    let mut rig = Rig::new(3, geometry(1, 0, 4096), 16 << 20);
    let mut body = rig.write(&[5; 100], None).expect("writes").body;
    body.segments[0].extent = ExtentId(7);
    assert_eq!(rig.read(&body, 0..100), Err(BodyError::UnknownExtent { extent: ExtentId(7) }));
}

#[test]
fn inline_bodies_come_from_any_good_replica() {
    for seed in 0..20 {
        let mut rig = Rig::new(seed, geometry(2, 1, 65_536), 16 << 20);
        let (len, offset) = (1 + rig.random.below(200_000) as u32, rig.random.below(1 << 20));
        let bytes = rig.bytes(len as usize);
        let crcs = bytes.chunks(65_536).map(crc32c).collect();
        let body = InlineBody { extent: ExtentId(1), offset, len, crcs };
        let columns = [0, 1].map(|disk| Column { disk: DiskIndex(disk), slot: 3 }).to_vec();
        let placement = Placement { id: ExtentId(1), class: ExtentClass::Log, columns };
        let origin = 3 * rig.geometry.log_slot_len + offset;
        for disk in [0, 1] {
            rig.disk(DiskIndex(disk)).overwrite("log", origin, &bytes);
        }
        let (a, b) = (rig.random.below(len.into()) as u32, rig.random.below(len.into()) as u32);
        let range = a.min(b)..a.max(b) + 1;
        let damaged = rig.random.below(3) as u8;
        let in_range = origin + u64::from(range.start);
        if damaged < 2 {
            rig.disk(DiskIndex(damaged)).corrupt("log", in_range, 4);
        }
        let read = |rig: &mut Rig| {
            let (bodies, placement, body) = (Rc::clone(&rig.bodies), placement.clone(), body.clone());
            let (on_damage, range) = (rig.on_damage(), range.clone());
            rig.world.run(async move { bodies.read_inline(&placement, &body, range, &on_damage).await })
        };
        let slice = read(&mut rig).expect("one replica is good");
        assert!(slice[..] == bytes[range.start as usize..range.end as usize]);
        assert!(rig.damages.borrow().iter().all(|damage| damage.disk == DiskIndex(damaged)));
        for disk in [0, 1] {
            rig.disk(DiskIndex(disk)).make_unreadable("log", in_range, 1);
        }
        let Err(BodyError::Lost { faults, .. }) = read(&mut rig) else { panic!("no replica is good") };
        assert_eq!(faults.len(), 2);
    }
}
