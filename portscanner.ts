#!/usr/bin/env -S npx ts-node
/**
 * A TCP port scanner: it tries to connect to ports on one host.
 *
 *     npx ts-node portscanner.ts -H localhost -p 54321
 *
 * It prints this, or `[OK] TCP port 54321 is open` as the second line:
 *
 *     Connecting to 127.0.0.1...
 *     [FAILED] TCP port 54321 is closed
 *
 * If some ports reply and others don't, the silent ones are probed again, until a
 * round brings no reply, since packets get lost. What is silent then is filtered.
 * The exit status is 0 if a port is open, 1 if none is, and 2 after an error.
 * Comments such as connect() name calls in Python's socket module. Left out on
 * purpose: more than one host; printing in order; UDP; raw packets.
 */
import { isIP, Socket } from 'node:net';
import yargs from 'yargs';

type Outcome = 'open' | 'closed' | 'silent' | 'no socket'; // of one probe
type Probe = (port: number) => Promise<Outcome>;

/** Scans ports, and prints the state of each as soon as it is known. Throws on any failure. */
async function scan(host: string, ports: number[], timeoutSeconds: number, openOnly: boolean): Promise<void> {
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);
  const count = { open: 0, closed: 0, filtered: 0 };
  const report = (port: number, state: keyof typeof count) => {
    count[state]++;
    if (state === 'open') console.log(`[OK] TCP port ${port} is open`);
    else if (!openOnly) console.log(`[FAILED] TCP port ${port} is ${state}`);
  };
  const probeAndReport: Probe = async (port) => {
    const outcome = await probe(address, port, timeoutSeconds);
    if (outcome === 'open' || outcome === 'closed') report(port, outcome);
    return outcome;
  };
  if (ports.length > 1) showProgress(() => `${count.open + count.closed}/${ports.length}`);
  for (const port of await probeAll(ports, probeAndReport)) report(port, 'filtered');
  process.exitCode = count.open > 0 ? 0 : 1;
}

/**
 * Probes one port: connect() sends a packet called SYN (RFC 9293, 3.5). Resolves to what comes back within the timeout:
 *
 * - SYN-ACK: open. The connection is established, and we close it.
 * - RST: closed. To connect(2), the ICMP error "port unreachable" looks the same.
 * - nothing, or another ICMP error: silent. There is a firewall or no such host, or a packet was lost.
 *
 * Resolves to 'no socket' if the system has none left. Rejects if this machine has no route, for instance.
 */
function probe(address: string, port: number, timeoutSeconds: number): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const socket = new Socket(); // socket(); IPv4 or IPv6, as the address says
    const settle = (outcome: Outcome) => {
      socket.destroy(); // close(); after this, no 'error' follows
      resolve(outcome);
    };
    socket.connect(port, address); // connect()
    // settimeout(). If a reply has arrived when the time is up, setImmediate() lets Node handle it first.
    socket.setTimeout(timeoutSeconds * 1000);
    socket.on('timeout', () => setImmediate(() => settle('silent')));
    // If nothing is listening, and the system picks this very port as our own, TCP connects our socket to itself.
    const isSelf = () => socket.localPort === port && socket.localAddress === socket.remoteAddress;
    socket.on('connect', () => settle(isSelf() ? 'closed' : 'open'));

    // connect() failed after the SYN: this is the reply, or the lack of one. (Node.js 20.12 and later.)
    socket.on('connectionAttemptFailed', (_address, _port, _family, { code = '' }: NodeJS.ErrnoException) => {
      if (code === 'EADDRINUSE') return; // Windows has no local port left: 'error' follows
      if (code === 'ECONNREFUSED') settle('closed');
      else if (['ECONNRESET', 'EPIPE'].includes(code)) settle('open'); // a SYN-ACK, then an RST
      else settle('silent');
    });

    // connect() failed at once, so no SYN was sent. Node then emits only 'error'.
    socket.on('error', (error: Error & { code: string }) => {
      if (['EACCES', 'EPERM', 'EHOSTUNREACH'].includes(error.code)) settle('silent'); // a local rule
      else if (['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM'].includes(error.code)) settle('no socket');
      else reject(error);
    });
  });
}

/** gethostbyname(): resolves to a name's IPv4 address. Returns an address unchanged. */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve, reject) => {
    if (isIP(host)) return resolve(host);
    // node:net looks up names only as a part of connect(). (Our scripts share no other module.) It reports the address
    // before it sends anything, and there we abort it, so the port doesn't matter.
    const socket = new Socket();
    socket.connect({ host, port: 1, family: 4 }); // AF_INET
    socket.on('lookup', (error, address) => {
      socket.destroy();
      if (error) reject(error);
      else resolve(address);
    });
  });
}

// So much for one port. The rest is about many ports, lost packets, and the command line.

/** Probes all ports, then the silent ones again, until a whole round brings no reply. Resolves to the silent ones. */
async function probeAll(ports: number[], probePort: Probe): Promise<number[]> {
  let silent = ports;
  let inFlight = 4096; // probes that wait for a reply: each takes a descriptor and 10 kB of memory
  for (let round = 1; round <= 100; round++) { // so that no host can keep the scan going forever
    const before = silent.length;
    silent = await probeRound(silent, inFlight, probePort);
    if (silent.length === before) break; // nothing has replied, or nothing is silent
    // Go slower, as the flood itself may have caused the loss: an eighth at a time, but 1,024 at least.
    inFlight = Math.min(inFlight, Math.max(1024, Math.ceil(silent.length / 8)));
  }
  return silent;
}

/** A round: probes each port once, at most `inFlight` at a time. Resolves to the ports that stay silent. */
async function probeRound(ports: number[], inFlight: number, probePort: Probe): Promise<number[]> {
  const waiting = [...ports].reverse(); // pop() takes the next port; shift() would be slow
  const silent: number[] = [];
  const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve)); // of Node's event loop
  let turn = nextTurn();

  /** A worker: probes one port after another until none is waiting, or the system has no socket for it. */
  const work = async () => {
    while (waiting.length > 0) {
      const port = waiting.pop() as number;
      if (waiting.length % 64 === 0) turn = turn.then(nextTurn); // every 64 probes, Node handles replies
      await turn;
      const outcome = await probePort(port);
      if (outcome === 'silent') silent.push(port);
      if (outcome === 'no socket') { waiting.push(port); return; } // another worker takes it
    }
  };
  // Promise.all gets all workers at once: it rejects at the first failure, and takes care of the others.
  await Promise.all(Array.from({ length: Math.min(inFlight, ports.length) }, work));
  if (waiting.length > 0) throw new ScanError('the system has no socket for a probe (see "ulimit -n")');
  return silent;
}

/** Shows on the terminal how many ports have replied. A result is a longer line, and overwrites this one. */
function showProgress(progress: () => string): void {
  if (!process.stdout.isTTY || !process.stderr.isTTY) return;
  setInterval(() => process.stderr.write(`\x1b[K${progress()}\r`), 100).unref();
  process.on('exit', () => process.stderr.write('\x1b[K')); // erases the line
}

class ScanError extends Error {}
class UsageError extends Error {}
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]';

/** Parses the arguments, then scans. Throws a UsageError if one is wrong. */
async function main(args: string[]): Promise<void> {
  const text = { type: 'string', requiresArg: true } as const; // as numbers, 1e3 and 0x50 would be ports
  const parser = yargs(args.map((arg) => arg.replace(/^-([Hpt])(?=[^=])/, '-$1='))) // -p22,80 as -p=22,80
    .usage(USAGE).locale('en').help(false).version(false) // yargs' own help would also accept -hello
    .parserConfiguration({ 'boolean-negation': false, 'camel-case-expansion': false, 'dot-notation': false,
      'duplicate-arguments-array': false }) // no guessing, as with --no-open; a repeated -p overrides
    .option('host', { ...text, alias: 'H', describe: 'IP address, or name (looked up as IPv4)' })
    .option('port', { ...text, alias: 'p', describe: 'TCP ports, as in 54321 or 22,80 or 8000-8100; - for all' })
    .option('timeout', { ...text, alias: 't', describe: 'seconds to wait for each reply', default: '3' })
    .option('open', { type: 'boolean', nargs: 0, describe: 'print only the open ports' })
    .option('help', { type: 'boolean', nargs: 0, alias: 'h', describe: 'show this help' })
    .strictOptions()
    .fail((message) => { throw new UsageError(message); });
  const { host, port, timeout, open = false, help, _: [unexpected] } = parser.parseSync();
  if (help) return console.log(await parser.getHelp());
  const hint = /^\d/.test(`${unexpected}`) ? '; separate ports with commas' : '';
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"${hint}`);
  if (host === undefined || port === undefined) throw new UsageError('both -H and -p are required');
  // The system would read 127.1 as 127.0.0.1, so a name must not end in a number, or have no letter.
  const isNumeric = /(^|\.)(\d+|0x[\da-f]+)$/i.test(host) || !/\p{L}/u.test(host);
  if (host.startsWith('-') || (isNumeric && !isIP(host)))
    throw new UsageError(`-H needs a host name or IP address, got "${host}"`);
  if (!/^(\d+|\d*\.\d+)$/.test(timeout) || Number(timeout) === 0 || Number(timeout) > 3600)
    throw new UsageError(`-t needs a number of seconds above 0 and at most 3600, got "${timeout}"`);
  await scan(host, parsePorts(port), Number(timeout), open);
}

/** The ports in a list such as 22,80,8000-8100, each once. "8000-" ends at the last port, "-100" begins at 1. */
function parsePorts(list: string): number[] {
  const ports = new Set<number>();
  for (const part of list.split(',')) {
    const [first = '', last = first] = part.split('-');
    const begin = Number(first || 1);
    const end = Number(last || 65535);
    if (!/^(\d{1,5}|\d{0,5}-\d{0,5})$/.test(part) || begin < 1 || begin > end || end > 65535)
      throw new UsageError(`-p needs ports from 1 to 65535 or ranges such as 8000-8100, got "${part}"`);
    for (let port = begin; port <= end; port++) ports.add(port);
  }
  return [...ports];
}

/** Escapes control characters (ASCII's, DEL, C1's, text direction's) as \u{1b}, but not tab and newline. */
function visible(text: string): string {
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\u{${character.charCodeAt(0).toString(16)}}`);
}

/** Reports the error, then exits with status 2. */
function fail(error: NodeJS.ErrnoException): void {
  let report = `portscanner.ts: ${visible(error.message).replaceAll('\n', '\\n')}\n`;
  if (error instanceof UsageError) report += `${USAGE}\n`;
  else if (!(error instanceof ScanError || error.syscall)) report = `${error.stack}\n`; // a bug
  process.stdout.write('', () => { // wait for earlier output, which exit() would discard
    process.stderr.write(report, () => process.exit(2));
  });
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') console.error(`portscanner.ts: ${error.message}`); // EPIPE: its reader has gone
  process.exit(2);
});
process.on('uncaughtException', (error) => { console.error(error.stack); process.exit(2); }); // bugs in callbacks
main(process.argv.slice(2)).catch(fail);
