//! Tasks, timers and clocks of a real core.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Waker;
use std::time::Duration;

use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId};

fn run<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce(Core) -> F) -> T {
    let config = Config { id: CoreId(0), cpu: None, arena_len: 1 << 20, entries: 64 };
    ring::run(&config, main).expect("a ring")
}

#[test]
fn timers_fire_in_order_and_not_early() {
    run(|core| async move {
        let fired = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30_u64, 5, 20, 0, 10]
            .into_iter()
            .map(|millis| {
                let (core, fired) = (core.clone(), Rc::clone(&fired));
                core.clone().spawn(async move {
                    let started = core.now();
                    core.sleep(Duration::from_millis(millis)).await;
                    assert!(core.now().since(started) >= Duration::from_millis(millis));
                    fired.borrow_mut().push(millis);
                })
            })
            .collect();
        let cancelled = core.spawn({
            let (core, fired) = (core.clone(), Rc::clone(&fired));
            async move {
                core.sleep(Duration::from_millis(15)).await;
                fired.borrow_mut().push(15);
            }
        });
        core.yield_now().await;
        cancelled.cancel();
        assert_eq!(cancelled.await, None);
        for task in tasks {
            task.await;
        }
        assert_eq!(*fired.borrow(), [0, 5, 10, 20, 30]);
    });
}

#[test]
fn a_task_is_woken_from_another_thread() {
    let (send, receive) = mpsc::channel::<(Waker, mpsc::Sender<()>)>();
    let helper = std::thread::spawn(move || {
        for (waker, done) in receive {
            std::thread::sleep(Duration::from_micros(100));
            done.send(()).expect("the task waits");
            waker.wake();
        }
    });
    run(|core| async move {
        let started = core.now();
        for _ in 0..200 {
            let (done, is_done) = mpsc::channel();
            let mut asked = false;
            std::future::poll_fn(|cx| {
                if is_done.try_recv().is_ok() {
                    return std::task::Poll::Ready(());
                }
                if !std::mem::replace(&mut asked, true) {
                    send.send((cx.waker().clone(), done.clone())).expect("the helper lives");
                }
                std::task::Poll::Pending
            })
            .await;
        }
        assert!(core.now().since(started) < Duration::from_secs(20), "wakes were lost");
        drop(send);
    });
    helper.join().expect("helper");
}

#[test]
fn tasks_left_at_the_end_are_dropped() {
    struct Probe(Rc<Cell<u32>>);
    impl Drop for Probe {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let dropped = Rc::new(Cell::new(0));
    let seen = Rc::clone(&dropped);
    run(|core| async move {
        for _ in 0..10 {
            let (core, probe) = (core.clone(), Probe(Rc::clone(&seen)));
            core.clone().spawn(async move {
                core.sleep(Duration::from_secs(3600)).await;
                drop(probe);
            });
        }
        core.yield_now().await;
    });
    assert_eq!(dropped.get(), 10);
}

#[test]
fn a_panic_in_a_task_ends_the_core_and_goes_on() {
    let outcome = std::panic::catch_unwind(|| {
        run(|core| async move {
            core.spawn(async { panic!("deliberate") });
            core.sleep(Duration::from_secs(3600)).await;
        });
    });
    let message = outcome.expect_err("the panic goes on");
    assert_eq!(message.downcast_ref::<&str>(), Some(&"deliberate"));
}

/// A future whose drop panics while reads are in flight: their memory must outlive them all the same.
#[test]
fn a_panic_while_going_down_waits_for_the_kernel() {
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            panic!("deliberate");
        }
    }
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("going_down");
    std::fs::create_dir_all(&path).expect("create");
    std::fs::write(path.join("data"), vec![7; 1 << 20]).expect("write");
    let outcome = std::panic::catch_unwind(|| {
        run(|core| async move {
            let file =
                basalt_reactor::Disk::open(&core, &path).expect("open").open_file("data").expect("open");
            let (sleeper, grenade) = (core.clone(), Grenade);
            core.spawn(async move {
                sleeper.sleep(Duration::from_secs(3600)).await;
                drop(grenade);
            });
            for offset in 0..8 {
                let (file, buf) = (file.clone(), core.arena().alloc(1 << 16).await);
                core.spawn(async move { drop(file.read_at(buf, offset << 16).await) });
            }
            core.yield_now().await;
        });
    });
    assert!(outcome.is_err());
}

#[test]
fn yielding_lets_every_other_task_run_once() {
    run(|core| async move {
        let trace = Rc::new(RefCell::new(String::new()));
        let tasks: Vec<_> = ['a', 'b', 'c']
            .map(|name| {
                let (core, trace) = (core.clone(), Rc::clone(&trace));
                core.clone().spawn(async move {
                    for _ in 0..3 {
                        trace.borrow_mut().push(name);
                        core.yield_now().await;
                    }
                })
            })
            .into();
        for task in tasks {
            task.await;
        }
        assert_eq!(*trace.borrow(), "abcabcabc");
    });
}

#[test]
fn randomness_does_not_repeat() {
    run(|core| async move {
        let mut seen: Vec<u64> = (0..1000).map(|_| core.random_u64()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
        let mut large = vec![0; 100_000];
        core.fill_random(&mut large);
        assert!(large.iter().filter(|&&byte| byte == 0).count() < 1000);
    });
}
