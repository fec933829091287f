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
 * Left out on purpose: more than one host; UDP; scans that never complete a
 * connection, which need raw sockets; fewer packets at a time if the timeout
 * is so short that no lost packet can be noticed.
 */
import { isIP, isIPv6, Socket } from 'node:net';
import yargs from 'yargs';

const TIMEOUT = 3; // seconds to wait for a reply
const SECOND_SYN = 1000; // milliseconds until the system repeats a SYN that got no reply (RFC 6298, 2.1)
const LATE = 0.9 * SECOND_SYN; // later than the quickest answer by this much: a packet was probably lost
const SHORT = 1.2 * SECOND_SYN; // a timeout that ends before an answer to a second SYN arrives
const MOST_IN_FLIGHT = 4096; // probes that wait for a reply at the same time; each takes about 20 kB of memory
const FEWEST_IN_FLIGHT = 16;
const MANY_SILENT = 100; // so many silent ports deserve a second look
const FRUITLESS_ROUNDS = 2; // rounds in a row without an answer, after which silent ports are taken for filtered
const MOST_ROUNDS = 20; // so that no host can make a scan endless
const VERSION = '1.0.0'; // as in package.json
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]';

type Reply = 'open' | 'closed' | 'silent' | 'no socket'; // of one probe
type Answer = 'open' | 'closed' | 'filtered'; // as printed
type Ask = (port: number) => Promise<Reply>;
type Options = { host: string; ports: number[]; timeout: number; openOnly: boolean }; // the timeout is in seconds
type Round = { silent: number[]; answered: number; late: number }; // how many ports answered, how many of them late
class Failure extends Error {} // an error that we expect: it is reported in one line, any other with its stack

/** The scanner: prints the address of the host and the answer of each port, in the order given. */
async function scan({ host, ports, timeout, openOnly }: Options): Promise<void> {
  process.exitCode = 2; // until all answers are known
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);

  const answers = new Map<number, Answer>();
  let printed = 0; // how many ports
  const tell = (port: number, answer: Answer) => {
    answers.set(port, answer);
    printed = printInOrder(ports, printed, answers, openOnly);
  };
  const ask: Ask = async (port) => {
    const reply = await probe(address, port, timeout);
    if (reply === 'open' || reply === 'closed') tell(port, reply);
    return reply;
  };
  if (ports.length > 1) showProgress(answers, ports.length);
  const filtered = await askAll(ports, timeout, ask);
  for (const port of filtered) tell(port, 'filtered');
  process.exitCode = [...answers.values()].includes('open') ? 0 : 1;
}

/**
 * Asks one port. Resolves to what it replies to a SYN within the timeout, in seconds (RFC 9293, 3.5):
 *
 * - SYN-ACK: open. The connection is established, and we close it.
 * - RST: closed. The ICMP error "port unreachable" looks the same to connect(2).
 * - nothing, or another ICMP error: silent. There is a firewall or no such host, or a packet was lost.
 *
 * Rejects if this machine cannot send a SYN, for instance because it has no route to the host.
 */
function probe(address: string, port: number, timeout: number): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const socket = new Socket();
    const settle = (reply: Reply) => {
      socket.destroy(); // close()
      resolve(reply);
    };
    socket.connect(port, address); // socket(AF_INET, SOCK_STREAM), connect()

    // settimeout(). If a reply is waiting when the time is up, setImmediate() lets Node handle the reply first.
    socket.on('connectionAttempt', () => socket.setTimeout(timeout * 1000));
    socket.on('timeout', () => setImmediate(settle, 'silent'));

    // If nothing listens, and the system picks this very port as our own, TCP connects the socket to itself.
    const toItself = () => socket.localPort === port && socket.localAddress === socket.remoteAddress;
    socket.on('connect', () => settle(toItself() ? 'closed' : 'open'));

    // connect() failed after a while: that is the reply, or the lack of one.
    socket.on('connectionAttemptFailed', (_address, _port, _family, { code }: NodeJS.ErrnoException) => {
      if (code === 'ECONNREFUSED') settle('closed');
      else if (code === 'ECONNRESET' || code === 'EPIPE') settle('open'); // an RST, but after the handshake
      else if (code !== 'EADDRINUSE') settle('silent'); // on Windows, EADDRINUSE is an error of this machine
    });

    // socket() or connect() failed at once: this machine sent no SYN.
    socket.on('error', ({ code = '' }: NodeJS.ErrnoException) => {
      if (['EACCES', 'EPERM', 'EHOSTUNREACH'].includes(code)) settle('silent'); // a rule for this port or host
      else if (['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM'].includes(code)) settle('no socket');
      else reject(new Failure(`cannot scan port ${port} of ${address} (${code})`));
    });
  });
}

/** gethostbyname(): resolves to the IPv4 address of a name; an address stays as it is. Rejects if there is none. */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve, reject) => {
    if (isIP(host)) return resolve(host);
    const socket = new Socket(); // in node:net, the one module that our scripts share, only connect() looks up names
    socket.connect({ host, port: 1, family: 4 }); // family 4 is AF_INET
    socket.on('lookup', (error: NodeJS.ErrnoException | null, address) => {
      socket.destroy(); // before it sends a SYN
      if (error) reject(new Failure(`cannot find an IPv4 address of ${host} (${error.code})`));
      else resolve(address);
    });
  });
}

/** Asks all ports. Resolves to those that are filtered: they stay silent although no packet seems to have been lost. */
async function askAll(ports: number[], timeout: number, ask: Ask): Promise<number[]> {
  const first = await askOnce(ports, MOST_IN_FLIGHT, ask); // in a good network, this is all
  const hostAnswers = first.answered > 0;
  const packetsLost = first.late > 0 || timeout * 1000 < SHORT; // a short timeout hides a loss
  if (hostAnswers && packetsLost) return askUntilSilent(first.silent, slowDown(MOST_IN_FLIGHT, first), ask);
  if (hostAnswers && first.silent.length >= MANY_SILENT) return lookAgain(first.silent, ask);
  return first.silent;
}

/** A second look at many silent ports: was it a firewall, or an outage? Asks some again; if one answers, the others. */
async function lookAgain(ports: number[], ask: Ask): Promise<number[]> {
  const step = Math.ceil(ports.length / MOST_IN_FLIGHT);
  const sample = ports.filter((_, index) => index % step === 0); // evenly spread
  const rest = ports.filter((_, index) => index % step !== 0);
  const look = await askOnce(sample, MOST_IN_FLIGHT, ask);
  return look.answered === 0 ? ports : askUntilSilent([...look.silent, ...rest], MOST_IN_FLIGHT / 4, ask);
}

/** Asks silent ports again, in rounds, until none answers any more. Resolves to those that are still silent. */
async function askUntilSilent(ports: number[], limit: number, ask: Ask): Promise<number[]> {
  let silent = ports;
  let fruitless = 0;
  for (let count = 0; count < MOST_ROUNDS && fruitless < FRUITLESS_ROUNDS && silent.length > 0; count++) {
    const round = await askOnce(silent, limit, ask);
    fruitless = round.answered === 0 ? fruitless + 1 : 0;
    limit = slowDown(limit, round);
    silent = round.silent;
  }
  return silent;
}

/** The limit for the next round: a quarter if many packets were lost, but enough for a round to end in 64 timeouts. */
function slowDown(limit: number, { silent, answered, late }: Round): number {
  return late > answered / 4 ? Math.max(limit / 4, silent.length / 64, FEWEST_IN_FLIGHT) : limit;
}

/** A round: asks each port once, with at most limit probes in flight. Rejects as soon as this machine fails. */
async function askOnce(ports: number[], limit: number, ask: Ask): Promise<Round> {
  const left = [...ports].reverse(); // pop() takes the next port
  const silent: number[] = [];
  const times: number[] = []; // milliseconds that each answer took
  let working = 0;

  /** Asks one port after another, until none is left or the system has no socket for it. */
  const work = async () => {
    working++;
    for (let port = left.pop(); port !== undefined; port = left.pop()) {
      const begin = performance.now();
      const reply = await ask(port);
      if (reply === 'silent') silent.push(port);
      else if (reply !== 'no socket') times.push(performance.now() - begin);
      else {
        left.push(port); // for the other workers
        limit = working - 1;
        if (limit === 0) throw new Failure('cannot open a single socket (see "ulimit -n")');
        break;
      }
    }
    working--;
  };

  const workers: Promise<void>[] = [];
  while (left.length > 0 && working < limit) {
    workers.push(work());
    await Promise.race([workers.at(-1), new Promise(setImmediate)]); // Node handles the replies that have arrived
  }
  await Promise.all(workers);
  const quickest = times.reduce((least, time) => Math.min(least, time), Infinity);
  const late = times.filter((time) => time > quickest + LATE);
  return { silent, answered: times.length, late: late.length };
}

/** Prints answers in the order of ports, from an index on, until one is not known yet. Returns that one's index. */
function printInOrder(ports: number[], index: number, answers: Map<number, Answer>, openOnly: boolean): number {
  for (; index < ports.length; index++) {
    const port = ports[index] ?? 0;
    const answer = answers.get(port);
    if (answer === undefined) break;
    if (answer === 'open') console.log(`[OK] TCP port ${port} is open`);
    else if (!openOnly) console.log(`[FAILED] TCP port ${port} is ${answer}`);
  }
  return index;
}

/** Shows on the terminal how many answers are known. The line of an answer is longer, and covers this one. */
function showProgress(answers: Map<number, Answer>, total: number): void {
  const stdoutIsPipe = process.stdout instanceof Socket && !process.stdout.isTTY; // its reader may use the terminal
  if (!process.stderr.isTTY || stdoutIsPipe) return;
  setInterval(() => process.stderr.write(`\x1b[K${answers.size} of ${total} ports\r`), 100).unref();
  process.on('exit', () => process.stderr.write('\x1b[K')); // erases the line
}

/** The options of the command line; undefined at --help and --version, which it prints. Throws if one is wrong. */
function parseArguments(args: string[]): Options | undefined {
  const detached = args.map((arg) => arg.replace(/^-([Hpt])(?=[^=])/, '-$1=')); // -p22,80 as -p=22,80
  const text = { type: 'string', requiresArg: true } as const; // as numbers, 1e3 and 0x50 would be ports
  const flag = { type: 'boolean', nargs: 0 } as const;
  const parser = yargs(detached)
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
  if (version) return void console.log(VERSION);
  if (host === undefined || port === undefined) throw usageError('both -H and -p are needed');
  if (typeof host !== 'string' || !(isIPv6(host) || /^[\p{L}\p{M}\p{N}._-]+$/u.test(host)))
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
function usageError(message: string): Failure {
  return new Failure(`${message.replace(/\p{C}/gu, encodeURI)}\n${USAGE}`);
}

/** Reports an error, and ends the program with status 2, once stdout has taken all that was printed before. */
function fail(error: Error): void {
  process.stdout.write('', () => {
    console.error(error instanceof Failure ? `portscanner.ts: ${error.message}` : error);
    process.exit(2);
  });
}

process.on('uncaughtException', fail); // Node's own status for it is 1, which means here that no port is open
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
  if (code !== 'EPIPE') console.error(`portscanner.ts: cannot print the answers (${code})`); // a full disk
  process.exit(2); // at EPIPE in silence: the reader has left, as head(1) does after ten lines
});
const options = parseArguments(process.argv.slice(2));
if (options) scan(options).catch(fail);
