#!/usr/bin/env -S npx ts-node
/**
 * A TCP port scanner: it tries to connect to ports of one host, and reports
 * whether each one is open.
 *
 *     npx ts-node portscanner.ts -H localhost -p 54321
 *
 * It prints this, or `[OK] TCP port 54321 is open` as the second line:
 *
 *     Connecting to 127.0.0.1...
 *     [FAILED] TCP port 54321 is closed
 *
 * A port that stays silent is filtered. The exit status is 0 if a port is
 * open, 1 if none is, and 2 if the scan failed.
 *
 * Left out on purpose: more than one host; UDP; scans with raw sockets;
 * slowing down if the timeout is too short to notice lost packets.
 */
import { isIP, isIPv6, Socket } from 'node:net';
import yargs from 'yargs';

const TIMEOUT = 3; // seconds to wait for a reply
const VERSION = '1.0.0'; // as in package.json
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]';

type State = 'open' | 'closed' | 'filtered'; // of a port, as printed
type Outcome = 'open' | 'closed' | 'silent' | 'no socket'; // of one probe
type Probe = (port: number) => Promise<Outcome>;
type Round = { silent: number[]; replies: number; late: number }; // how many ports replied, and how many late
type Options = { host: string; ports: number[]; timeout: number; openOnly: boolean }; // the timeout is in seconds
class ExpectedError extends Error {} // reported without its stack; any other error shows it

/** The scanner: prints the address of the host and the state of each port, in the order given. */
async function scan({ host, ports, timeout, openOnly }: Options): Promise<void> {
  process.exitCode = 2; // until the state of every port is known
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);

  const states = new Map<number, State>();
  let printed = 0; // how many ports
  const setState = (port: number, state: State) => {
    states.set(port, state);
    printed = printInOrder(ports, printed, states, openOnly);
  };
  const probePort: Probe = async (port) => {
    const outcome = await probe(address, port, timeout);
    if (outcome === 'open' || outcome === 'closed') setState(port, outcome);
    return outcome;
  };
  if (ports.length > 1) showProgress(states, ports.length);
  const filtered = await probeAll(ports, timeout, probePort);
  for (const port of filtered) setState(port, 'filtered');
  process.exitCode = [...states.values()].includes('open') ? 0 : 1;
}

/**
 * Probes one port. Resolves to what a SYN brings within `timeout` seconds (RFC 9293, 3.5):
 *
 * - SYN-ACK: open. The connection is established, and we close it.
 * - RST: closed. To connect(2), the ICMP error "port unreachable" looks the same.
 * - nothing, or another ICMP error: silent. There is a firewall or no such host, or a packet was lost.
 *
 * Ends the program if this machine has no route (ENETUNREACH). If a local rule forbids the SYN: silent.
 */
function probe(address: string, port: number, timeout: number): Promise<Outcome> {
  return new Promise((resolve) => {
    const socket = new Socket();
    const settle = (outcome: Outcome) => {
      socket.destroy(); // close()
      resolve(outcome);
    };
    socket.connect(port, address); // socket(AF_INET, SOCK_STREAM), connect()

    // settimeout(). If a reply has arrived when the time is up, setImmediate() lets Node handle the reply first.
    socket.on('connectionAttempt', () => socket.setTimeout(timeout * 1000));
    socket.on('timeout', () => setImmediate(settle, 'silent'));

    // If nothing listens, and the system picks this very port as our own, TCP connects the socket to itself.
    const toItself = () => socket.localPort === port && socket.localAddress === socket.remoteAddress;
    socket.on('connect', () => settle(toItself() ? 'closed' : 'open'));

    // connect() failed after a while: this is the reply, or the lack of one. After settle(), no 'error' follows.
    socket.on('connectionAttemptFailed', (_address, _port, _family, { code }: NodeJS.ErrnoException) => {
      if (code === 'ECONNREFUSED') settle('closed');
      else if (code === 'ECONNRESET' || code === 'EPIPE') settle('open'); // an RST, but after a SYN-ACK
      else if (code !== 'EADDRINUSE') settle('silent'); // EADDRINUSE is local, on Windows: 'error' follows
    });

    // socket() or connect() failed at once: this machine sent no SYN, perhaps because one of its rules forbids it.
    socket.on('error', ({ code = '' }: NodeJS.ErrnoException) => {
      if (['EACCES', 'EPERM', 'EHOSTUNREACH'].includes(code)) settle('silent');
      else if (['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM'].includes(code)) settle('no socket');
      else fail(new ExpectedError(`cannot scan port ${port} of ${address} (${code})`));
    });
  });
}

/** gethostbyname(): resolves to the IPv4 address of a name; an address stays as it is. Rejects if there is none. */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve, reject) => {
    if (isIP(host)) return resolve(host);
    const socket = new Socket(); // the only module that our scripts share, node:net, looks up names in connect()
    socket.connect({ host, port: 1, family: 4 }); // AF_INET. The port doesn't matter: the connection is never made
    socket.on('lookup', (error: NodeJS.ErrnoException | null, address) => {
      socket.destroy();
      if (error) reject(new ExpectedError(`cannot find an IPv4 address of ${host} (${error.code})`));
      else resolve(address);
    });
  });
}

// From here on: many ports at once, in networks that lose packets.
const SECOND_SYN_MS = 1000; // the system repeats an unanswered SYN after this time (RFC 6298, 2.1)
const LATE_MS = 0.9 * SECOND_SYN_MS; // a reply that is later than the quickest one by this much hints at a lost packet
const SHORT_MS = 1.2 * SECOND_SYN_MS; // a shorter timeout ends before a late reply arrives
const MOST_IN_FLIGHT = 4096; // probes that wait for a reply at the same time; each takes about 10 kB of memory
const FEWEST_IN_FLIGHT = 16;
const MANY_SILENT = 100; // if others reply, this many silent ports get a second look
const FRUITLESS_ROUNDS = 2; // rounds in a row without a reply, after which silent ports count as filtered
const MOST_ROUNDS = 20; // so that no host can make a scan endless

/** Probes all ports. Resolves to those that are filtered: they stay silent although no packet seems to get lost. */
async function probeAll(ports: number[], timeout: number, probePort: Probe): Promise<number[]> {
  const first = await runRound(ports, MOST_IN_FLIGHT, probePort); // usually the only round
  if (first.replies === 0) return first.silent; // no such host, or a firewall around all of it
  const maybeLost = first.late > 0 || timeout * 1000 < SHORT_MS; // a short timeout hides losses: we assume them
  if (maybeLost) return retry(first.silent, slowDown(MOST_IN_FLIGHT, first), probePort);
  return first.silent.length >= MANY_SILENT ? lookAgain(first.silent, probePort) : first.silent;
}

/** A second look at many silent ports: a firewall drops packets for ever, an outage ends. Retries if any replies. */
async function lookAgain(ports: number[], probePort: Probe): Promise<number[]> {
  const step = Math.ceil(ports.length / MOST_IN_FLIGHT);
  const sample = ports.filter((_, index) => index % step === 0); // evenly spread
  const others = ports.filter((_, index) => index % step !== 0);
  const round = await runRound(sample, MOST_IN_FLIGHT, probePort);
  if (round.replies === 0) return ports;
  return retry([...round.silent, ...others], MOST_IN_FLIGHT / 4, probePort); // slowly: we may have been banned
}

/** Probes silent ports again, in rounds, until none replies any more. Resolves to those that stay silent. */
async function retry(silent: number[], limit: number, probePort: Probe): Promise<number[]> {
  let fruitless = 0;
  for (let count = 0; count < MOST_ROUNDS && fruitless < FRUITLESS_ROUNDS && silent.length > 0; count++) {
    const round = await runRound(silent, limit, probePort);
    fruitless = round.replies === 0 ? fruitless + 1 : 0;
    limit = slowDown(limit, round);
    silent = round.silent;
  }
  return silent;
}

/** The next limit: a quarter if many replies were late, but enough that a round takes at most 64 timeouts. */
function slowDown(limit: number, { silent, replies, late }: Round): number {
  return late > replies / 4 ? Math.max(limit / 4, silent.length / 64, FEWEST_IN_FLIGHT) : limit;
}

/** A round: probes each port once, with at most limit probes in flight. Throws if the system has no socket at all. */
async function runRound(ports: number[], limit: number, probePort: Probe): Promise<Round> {
  const remaining = [...ports].reverse(); // pop() takes the next port
  const silent: number[] = [];
  const times: number[] = []; // milliseconds that each reply took

  /** A worker: probes one port after another, until none is left, or until the system has no socket for it. */
  const work = async () => {
    for (let port = remaining.pop(); port !== undefined; port = remaining.pop()) {
      const begin = performance.now();
      const outcome = await probePort(port);
      if (outcome === 'no socket') {
        remaining.push(port); // for a worker that has a socket
        return;
      }
      if (outcome === 'silent') silent.push(port);
      else times.push(performance.now() - begin);
    }
  };

  while (remaining.length > 0) { // once, unless all workers stopped for lack of a socket
    const before = remaining.length;
    const workers: Promise<void>[] = [];
    for (let started = 0; started < limit && remaining.length > 0; started++) {
      workers.push(work());
      await new Promise((resolve) => setImmediate(resolve)); // meanwhile, Node handles replies that have arrived
    }
    await Promise.all(workers);
    if (remaining.length === before) throw new ExpectedError('cannot open a single socket (see "ulimit -n")');
  }
  const quickest = times.reduce((least, time) => Math.min(least, time), Infinity);
  return { silent, replies: times.length, late: times.filter((time) => time > quickest + LATE_MS).length };
}

/** Prints states in the order of ports, from an index on, up to the first unknown one. Returns its index. */
function printInOrder(ports: number[], index: number, states: Map<number, State>, openOnly: boolean): number {
  for (let port = ports[index]; port !== undefined; port = ports[++index]) {
    const state = states.get(port);
    if (state === undefined) break;
    if (state === 'open') console.log(`[OK] TCP port ${port} is open`);
    else if (!openOnly) console.log(`[FAILED] TCP port ${port} is ${state}`);
  }
  return index;
}

/** Shows on the terminal how many states are known. The line of a port is longer, and covers this one. */
function showProgress(states: Map<number, State>, total: number): void {
  const stdoutIsPipe = process.stdout instanceof Socket && !process.stdout.isTTY; // its reader may use the terminal
  if (!process.stderr.isTTY || stdoutIsPipe) return;
  setInterval(() => process.stderr.write(`\x1b[K${states.size} of ${total} ports\r`), 100).unref();
  process.on('exit', () => process.stderr.write('\x1b[K')); // erases the line
}

/** The options of the command line. Throws if one is wrong. --help and --version only print. */
function parseArguments(args: string[]): Options | void {
  const separated = args.map((arg) => arg.replace(/^-([Hpt])(?=[^=])/, '-$1=')); // -p22,80 as -p=22,80
  const text = { type: 'string', requiresArg: true } as const; // as numbers, 1e3 and 0x50 would be ports
  const flag = { type: 'boolean', nargs: 0 } as const;
  const parser = yargs(separated)
    .usage(USAGE)
    .locale('en')
    .parserConfiguration({ 'boolean-negation': false, 'camel-case-expansion': false, 'dot-notation': false })
    .option('host', { ...text, alias: 'H', describe: 'IPv4 address, IPv6 address or name (looked up as IPv4)' })
    .option('port', { ...text, alias: 'p', describe: 'TCP ports to scan: 54321, 22,80,443, 8000-8100, or - for all' })
    .option('timeout', { ...text, alias: 't', describe: 'seconds to wait for each port, up to 3600', default: TIMEOUT })
    .option('open', { ...flag, describe: 'print only the open ports' })
    .help(false).version(false) // by itself, yargs would take -hello for -h, and help for --help
    .option('help', { ...flag, alias: 'h', describe: 'show this help' })
    .option('version', { ...flag, describe: 'show the version' })
    .strictOptions()
    .fail((message) => { throw usageError(message); });
  const { host, port, timeout, open = false, help, version, _: unexpected } = parser.parseSync();
  if (unexpected.length > 0) throw usageError(`unexpected argument "${unexpected[0]}"; separate ports with commas`);
  if (help) return void parser.showHelp('log');
  if (version) return console.log(VERSION);
  if (host === undefined || port === undefined) throw usageError('both -H and -p are needed');
  if (typeof host !== 'string' || !(isIPv6(host) || /^(?!\d+$)[\p{L}\p{M}\p{N}._-]+$/u.test(host)))
    throw usageError(`-H takes one name or IP address, without brackets or a port, not ${JSON.stringify(host)}`);
  const seconds = /^(\d+|\d*\.\d+)$/.test(String(timeout)) ? Number(timeout) : 0;
  if (seconds === 0 || seconds > 3600)
    throw usageError(`-t takes seconds above 0 and up to 3600, such as 0.5, not ${JSON.stringify(timeout)}`);
  return { host, ports: parsePorts(port), timeout: seconds, openOnly: open };
}

/** The ports of --port, each once, in the order given. "8000-" ends at the last port, "-100" begins at the first. */
function parsePorts(list: unknown): number[] {
  if (typeof list !== 'string') throw usageError(`-p takes one list, such as 22,80, not ${JSON.stringify(list)}`);
  return [...new Set(list.split(',').flatMap((part) => {
    const [start = '', end = start] = part.split('-');
    const first = start === '' ? 1 : Number(start);
    const last = end === '' ? 65535 : Number(end);
    const wellFormed = /^(\d{1,5}|\d{0,5}-\d{0,5})$/.test(part);
    if (!wellFormed || first < 1 || first > last || last > 65535)
      throw usageError(`${JSON.stringify(part)} is neither a port from 1 to 65535 nor a range such as 8000-8100`);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  }))];
}

/** The error for a wrong command line. Control characters are escaped: they could control the terminal. */
function usageError(message: string): ExpectedError {
  const escape = (character: string) => `\\u{${character.codePointAt(0)?.toString(16)}}`;
  return new ExpectedError(`${message.replace(/\p{C}/gu, escape)}\n${USAGE}`);
}

/** Reports an error, and ends the program with status 2, once stdout has taken all that was printed before. */
function fail(error: Error): void {
  const report = error instanceof ExpectedError ? `portscanner.ts: ${error.message}` : error.stack;
  process.stdout.write('', () => process.stderr.write(`${report}\n`, () => process.exit(2)));
}

process.on('uncaughtException', fail); // a usage error, or a mistake in the source; Node's own status for them is 1
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
  if (code !== 'EPIPE') console.error(`portscanner.ts: cannot print the answers (${code})`); // a full disk
  process.exit(2); // silent on EPIPE: the reader has left, as head(1) does after ten lines
});
const options = parseArguments(process.argv.slice(2));
if (options) scan(options).catch(fail);
