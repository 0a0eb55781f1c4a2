//! Tasks of one core: joinable futures and the handle that waits for them.
//!
//! Both worlds run the same boxed, unit-valued futures; results travel through the handle.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What an executor runs: a local future without a result.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Join<T> {
    result: Option<T>,
    finished: bool,
    cancelled: bool,
    waiter: Option<Waker>,
    runner: Option<Waker>,
}

/// Waits for a spawned task. Dropping it lets the task go on by itself.
pub struct JoinHandle<T> {
    join: Rc<RefCell<Join<T>>>,
}

impl<T> JoinHandle<T> {
    /// Asks the executor to drop the task's future at its next turn; awaiting then yields `None`.
    pub fn cancel(&self) {
        let runner = {
            let mut join = self.join.borrow_mut();
            join.cancelled = true;
            join.runner.take()
        };
        if let Some(runner) = runner {
            runner.wake();
        }
    }

    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.join.borrow().finished
    }
}

impl<T> Future for JoinHandle<T> {
    /// `None` when the task was cancelled before it finished.
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut join = self.join.borrow_mut();
        if join.finished {
            return Poll::Ready(join.result.take());
        }
        join.waiter = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Splits a future into the task to run and the handle that receives its result.
pub(crate) fn joinable<T: 'static>(future: impl Future<Output = T> + 'static) -> (Task, JoinHandle<T>) {
    let join = Rc::new(RefCell::new(Join {
        result: None,
        finished: false,
        cancelled: false,
        waiter: None,
        runner: None,
    }));
    let handle = JoinHandle { join: Rc::clone(&join) };
    let task = async move {
        let result = {
            let mut future = std::pin::pin!(future);
            poll_fn(|cx| {
                {
                    let mut join = join.borrow_mut();
                    if join.cancelled {
                        return Poll::Ready(None);
                    }
                    join.runner = Some(cx.waker().clone());
                }
                future.as_mut().poll(cx).map(Some)
            })
            .await
        };
        let waiter = {
            let mut join = join.borrow_mut();
            join.result = result;
            join.finished = true;
            join.runner = None;
            join.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    };
    (Box::pin(task), handle)
}

/// Pending once, with the task already woken.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
