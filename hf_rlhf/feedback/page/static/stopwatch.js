// Seconds that a task was looked at: time in which the page is hidden does not count.

export class Stopwatch {
  constructor() {
    this.start();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.go()));
  }

  start() {
    this.spent = 0;
    this.since = document.hidden ? null : performance.now();
  }

  stop() {
    this.spent = this.seconds();
    this.since = null;
  }

  go() {
    this.since ??= performance.now();
  }

  seconds() {
    return this.spent + (this.since === null ? 0 : (performance.now() - this.since) / 1000);
  }
}
