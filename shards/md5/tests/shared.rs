//! Streams that share lanes, against the md-5 crate: whatever the order of pieces, ends and cancellations.

use std::cell::Cell;
use std::rc::Rc;

use basalt_md5::Kernel;
use basalt_md5::shared::{HELD_MAX, LAG_MAX, PIECE_COST_MIN, Stream, Streams};
use md5::{Digest, Md5};
use proptest::prelude::*;

/// A piece that counts how many there are.
struct Piece {
    bytes: Vec<u8>,
    alive: Rc<Cell<usize>>,
}

impl Piece {
    fn new(bytes: Vec<u8>, alive: &Rc<Cell<usize>>) -> Piece {
        alive.set(alive.get() + 1);
        Piece { bytes, alive: Rc::clone(alive) }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

struct Open {
    stream: Stream<Piece>,
    model: Md5,
}

/// What happens to one of the streams.
#[derive(Clone, Debug)]
enum Event {
    Begin {
        short: bool,
    },
    Update {
        which: usize,
        len: usize,
    },
    CatchUp {
        which: usize,
    },
    /// These end in the same turn.
    End {
        which: Vec<usize>,
    },
    Cancel {
        which: usize,
    },
    CancelAfterAsking {
        which: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let which = 0usize..64;
    let len = prop_oneof![0usize..200, 1000usize..20_000, Just(16 << 10), Just(200 << 10)];
    prop_oneof![
        3 => any::<bool>().prop_map(|short| Event::Begin { short }),
        20 => (which.clone(), len).prop_map(|(which, len)| Event::Update { which, len }),
        1 => which.clone().prop_map(|which| Event::CatchUp { which }),
        2 => prop::collection::vec(which.clone(), 1..6).prop_map(|which| Event::End { which }),
        1 => which.clone().prop_map(|which| Event::Cancel { which }),
        1 => which.prop_map(|which| Event::CancelAfterAsking { which }),
    ]
}

fn end(ending: Vec<Open>) {
    let ended: Vec<_> = ending.into_iter().map(|open| (open.stream.end(), open.model)).collect();
    for (ended, model) in ended {
        assert_eq!(ended.digest(), <[u8; 16]>::from(model.finalize()));
    }
}

fn play(kernel: Kernel, events: &[Event]) {
    let alive = Rc::new(Cell::new(0));
    let streams = Streams::new(kernel);
    let mut open: Vec<Open> = Vec::new();
    let mut byte = 0u8;
    for event in events {
        let count = open.len();
        match event {
            Event::Begin { short } => {
                let stream = if *short { streams.short_stream() } else { streams.stream() };
                open.push(Open { stream, model: Md5::new() });
            }
            _ if count == 0 => {}
            Event::Update { which, len } => {
                let bytes: Vec<u8> = (0..*len)
                    .map(|_| {
                        byte = byte.wrapping_mul(5).wrapping_add(73);
                        byte
                    })
                    .collect();
                let open = &mut open[which % count];
                open.model.update(&bytes);
                open.stream.update(Piece::new(bytes, &alive));
            }
            Event::CatchUp { which } => {
                let open = &mut open[which % count];
                open.stream.ask();
                open.stream.catch_up();
            }
            Event::End { which } => {
                let mut ending = Vec::new();
                for which in which {
                    if !open.is_empty() {
                        ending.push(open.swap_remove(which % open.len()));
                    }
                }
                end(ending);
            }
            Event::Cancel { which } => drop(open.swap_remove(which % count)),
            Event::CancelAfterAsking { which } => drop(open.swap_remove(which % count).stream.end()),
        }
        assert!(streams.held() <= HELD_MAX, "{} held", streams.held());
        assert!(alive.get() * PIECE_COST_MIN <= HELD_MAX, "{} pieces", alive.get());
    }
    end(open);
    assert_eq!((alive.get(), streams.held()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn digests_are_those_of_the_bytes(events in prop::collection::vec(event(), 1..200)) {
        for kernel in Kernel::available() {
            play(kernel, &events);
        }
    }
}

#[test]
fn a_stream_that_is_alone_holds_nothing() {
    let alive = Rc::new(Cell::new(0));
    let streams = Streams::new(Kernel::detect());
    let mut stream = streams.stream();
    assert!(!stream.may_share());
    for _ in 0..10 {
        stream.update(Piece::new(vec![7; 10_000], &alive));
        assert_eq!((alive.get(), streams.held()), (0, 0));
    }
    assert_eq!(stream.end().digest(), <[u8; 16]>::from(Md5::digest([7; 100_000])));
}

#[test]
fn short_streams_that_follow_each_other_share_their_end() {
    let alive = Rc::new(Cell::new(0));
    let streams = Streams::new(Kernel::detect());
    let ended: Vec<_> = (0..20u8)
        .map(|byte| {
            let mut stream = streams.short_stream();
            stream.update(Piece::new(vec![byte; 4096], &alive));
            assert!(stream.may_share());
            stream.end()
        })
        .collect();
    assert_eq!(alive.get(), 20);
    for (byte, ended) in (0..20u8).zip(ended) {
        assert_eq!(ended.digest(), <[u8; 16]>::from(Md5::digest([byte; 4096])));
        assert_eq!(alive.get(), 0, "the first to catch up takes all along");
    }
}

#[test]
fn a_stream_left_alone_lets_go_of_what_it_held() {
    let alive = Rc::new(Cell::new(0));
    let streams = Streams::new(Kernel::detect());
    let (mut stayer, mut leaver) = (streams.stream(), streams.stream());
    stayer.update(Piece::new(vec![1; 20_000], &alive));
    leaver.update(Piece::new(vec![2; 20_000], &alive));
    assert_eq!(alive.get(), 2);
    drop(leaver);
    assert_eq!(alive.get(), 1, "a cancelled stream takes its pieces with it");
    stayer.update(Piece::new(vec![1; 5], &alive));
    assert_eq!(alive.get(), 0);
    assert_eq!(stayer.end().digest(), <[u8; 16]>::from(Md5::digest([1; 20_005])));
}

/// A fast stream beside a stalled one: its own lag is bounded, and the stalled one's bytes are not waited for.
#[test]
fn the_lag_of_each_is_bounded() {
    let alive = Rc::new(Cell::new(0));
    let streams = Streams::new(Kernel::detect());
    let mut stalled = streams.stream();
    stalled.update(Piece::new(vec![1; 100], &alive));
    let mut fast = streams.stream();
    for _ in 0..200 {
        fast.update(Piece::new(vec![9; 10_000], &alive));
        assert!(streams.held() <= LAG_MAX + 2 * PIECE_COST_MIN);
    }
    assert_eq!(fast.end().digest(), <[u8; 16]>::from(Md5::digest(vec![9; 2_000_000])));
    assert_eq!(stalled.end().digest(), <[u8; 16]>::from(Md5::digest([1; 100])));
}

#[test]
fn many_streams_hold_no_more_than_one_core_may() {
    let alive = Rc::new(Cell::new(0));
    let streams = Streams::new(Kernel::detect());
    let mut all: Vec<_> = (0..600).map(|_| streams.stream()).collect();
    let mut most = 0;
    for round in 0..3 {
        for stream in &mut all {
            stream.update(Piece::new(vec![round; 1000], &alive));
            most = most.max(streams.held());
            assert!(alive.get() * PIECE_COST_MIN <= HELD_MAX);
        }
    }
    assert!(most > HELD_MAX / 2 && most <= HELD_MAX);
    let model = Md5::new().chain_update([0; 1000]).chain_update([1; 1000]).chain_update([2; 1000]);
    let digest = <[u8; 16]>::from(model.finalize());
    let ended: Vec<_> = all.into_iter().map(Stream::end).collect();
    assert!(ended.into_iter().all(|ended| ended.digest() == digest));
}
