//! Calls between two real cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use basalt_reactor::mesh::{self, CALLS_MAX, Lost, Port, PortSeed};
use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId};

fn core<T: 'static, F: Future<Output = T> + 'static>(id: u16, main: impl FnOnce(Core) -> F) -> T {
    let config = Config { id: CoreId(id), cpu: None, arena_len: 1 << 20, entries: 64 };
    ring::run(&config, main).expect("a ring")
}

fn two<Q: Send + 'static, R: Send + 'static>() -> (PortSeed<Q, R>, PortSeed<Q, R>) {
    let mut seeds = mesh::seeds(2).into_iter();
    (seeds.next().expect("first"), seeds.next().expect("second"))
}

fn serve(core: &Core, port: &Port<u64, u64>) {
    let port = port.clone();
    core.spawn(async move {
        loop {
            let incoming = port.next().await;
            let reply = incoming.request + 1;
            incoming.reply.send(reply);
        }
    });
}

/// Both cores call each other from more tasks than there are slots, and drop a third of the calls.
#[test]
fn two_cores_call_each_other_through_full_queues() {
    const TASKS: u64 = CALLS_MAX as u64 + 500;
    const CALLS: u64 = 20;
    let (first, second) = two::<u64, u64>();
    let finished = Arc::new(AtomicU64::new(0));
    let side = |id: u16, seed: PortSeed<u64, u64>| {
        let finished = Arc::clone(&finished);
        std::thread::spawn(move || {
            core(id, |core| async move {
                let port = seed.attach(&core);
                serve(&core, &port);
                let tasks: Vec<_> = (0..TASKS)
                    .map(|task| {
                        let (port, core) = (port.clone(), core.clone());
                        core.clone().spawn(async move {
                            for call in 0..CALLS {
                                let to = CoreId(((u64::from(id) + task + call) % 2) as u16);
                                let request = task * CALLS + call;
                                if call % 3 == 0 {
                                    let port = port.clone();
                                    let dropped = core.spawn(async move { port.call(to, request).await });
                                    if call % 2 == 0 {
                                        core.yield_now().await;
                                    }
                                    dropped.cancel();
                                } else {
                                    assert_eq!(port.call(to, request).await, Ok(request + 1));
                                }
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("not cancelled");
                }
                finished.fetch_add(1, Ordering::SeqCst);
                while finished.load(Ordering::SeqCst) < 2 {
                    core.sleep(Duration::from_millis(1)).await;
                }
            });
        })
    };
    let threads = [side(0, first), side(1, second)];
    for thread in threads {
        thread.join().expect("core");
    }
}

#[test]
fn messages_of_one_sender_stay_in_order() {
    const NOTICES: u64 = 20_000;
    let (first, second) = two::<u64, u64>();
    let receiver = std::thread::spawn(move || {
        core(1, |core| async move {
            let port = second.attach(&core);
            for expected in 0..NOTICES {
                assert_eq!(port.next().await.request, expected);
            }
            let last = port.next().await;
            assert_eq!(port.backlog(), 0);
            last.reply.send(7);
            core.sleep(Duration::from_millis(20)).await;
        });
    });
    core(0, |core| async move {
        let port = first.attach(&core);
        for notice in 0..NOTICES {
            port.notify(CoreId(1), notice);
            if notice % 1000 == 0 {
                core.yield_now().await;
            }
        }
        assert_eq!(port.call(CoreId(1), 0).await, Ok(7));
    });
    receiver.join().expect("receiver");
}

#[test]
fn calls_to_a_core_that_goes_away_are_lost() {
    let (first, second) = two::<u64, u64>();
    let other = std::thread::spawn(move || {
        core(1, |core| async move {
            let port = second.attach(&core);
            let answered = port.next().await;
            answered.reply.send(1);
            drop(port.next().await);
            let _held = port.next().await;
        });
    });
    core(0, |core| async move {
        let port = first.attach(&core);
        assert_eq!(port.call(CoreId(1), 0).await, Ok(1));
        assert_eq!(port.call(CoreId(1), 0).await, Err(Lost), "the request was dropped unanswered");
        assert_eq!(port.call(CoreId(1), 0).await, Err(Lost), "the core ended while it held the request");
        other.join().expect("other");
        assert_eq!(port.call(CoreId(1), 0).await, Err(Lost), "the core is gone");
        port.notify(CoreId(1), 0);
    });
}

#[test]
fn calls_to_a_seed_that_was_never_attached_are_lost() {
    let (first, second) = two::<u64, u64>();
    core(0, |core| async move {
        let port = first.attach(&core);
        let waiting = core.spawn({
            let port = port.clone();
            async move { port.call(CoreId(1), 0).await }
        });
        core.yield_now().await;
        drop(second);
        assert_eq!(waiting.await, Some(Err(Lost)));
    });
}
