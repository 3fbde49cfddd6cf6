//! The task that runs delivery: it waits for batches, outcomes, timers, the spool and commands, lets the machine
//! decide at each of them, and makes the calls that it starts, each in a task of its own. It decides nothing.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::{Command, Delivery, Ended, letters, spill};
use crate::failpoint::{self, Point};

impl Delivery {
    /// Delivers until it is told to abandon what is left, or every sender of commands is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        // Bounded by the calls in flight.
        let (sender, mut ended) = mpsc::unbounded_channel();
        let cut = watch::channel(false).0;
        loop {
            while let Ok(ended) = ended.try_recv() {
                self.finish(ended, Instant::now());
            }
            self.step(Instant::now());
            self.set_off(&sender, &cut);
            let timer = self.timers.peek().map(|Reverse((at, _))| *at);
            let handoff = Arc::clone(&self.parts.handoff);
            tokio::select! {
                () = handoff.arrived() => (),
                Some(ended) = ended.recv() => {
                    self.finish(ended, Instant::now());
                    // What is ready has its turn first, other calls that end now among it: the calls that take their
                    // places are then prepared together.
                    tokio::task::yield_now().await;
                }
                () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now).into()), if timer.is_some() => (),
                event = spill::next_event(&mut self.spill) => {
                    event.into_iter().for_each(|event| self.hear(event, Instant::now()));
                }
                answer = letters::next_answer(&mut self.letters) => self.hear_of_letter(answer, Instant::now()),
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    if self.obey(command, Instant::now()).is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Does what it is asked; breaks where that is the end.
    fn obey(&mut self, command: Command, now: Instant) -> ControlFlow<()> {
        match command {
            // Whoever asked may have gone away meanwhile.
            Command::Abandon(answer) => {
                self.abandon(now);
                let _ = answer.send(());
                return ControlFlow::Break(());
            }
            Command::Look(answer) => {
                let _ = answer.send(self.view(now));
            }
            Command::Drain(done) => self.drain(done, now),
            Command::Spool(cut_at, done) => self.leave(cut_at, done),
            Command::Sweep => self.sweep(now),
            Command::Reload(config, done) => {
                self.reload(config, now);
                let _ = done.send(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Makes the calls that were chosen in this step, and cuts those in flight where that is wanted. Calls are
    /// prepared together, which is cheaper than one by one.
    fn set_off(&mut self, ended: &mpsc::UnboundedSender<Ended>, cut: &watch::Sender<bool>) {
        if self.is_cut && !*cut.borrow() {
            cut.send_replace(true);
        }
        if self.starting.is_empty() {
            return;
        }
        self.parts.destination.prepare(self.starting.iter_mut().map(|(call, _)| call));
        for (call, started) in self.starting.drain(..) {
            let (destination, ended) = (Arc::clone(&self.parts.destination), ended.clone());
            let mut cut = cut.subscribe();
            tokio::spawn(async move {
                failpoint::pass(Point::CallBefore);
                let outcome = tokio::select! {
                    outcome = destination.call(call) => outcome,
                    _ = cut.wait_for(|is_cut| *is_cut) => spill::cut_off(),
                };
                failpoint::pass(Point::CallAfter);
                // Delivery is gone only when the process is about to end.
                let _ = ended.send(Ended { call: started, outcome });
            });
        }
    }
}
