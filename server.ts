#!/usr/bin/env -S npx ts-node
/**
 * An echo server (RFC 862): it accepts one TCP connection, prints what it
 * receives, sends the same bytes back, and ends when the client closes.
 *
 *     npx ts-node server.ts [host] [port]
 *
 * It prints this, while client.ts runs in another terminal:
 *
 *     Server started on localhost, listening on TCP port 54321
 *     Incoming connection from 127.0.0.1:58666...
 *     Received following data: Hello World!
 *     Server is shutting down. Bye!
 *
 * Left out on purpose: more than one client, and a time-out for a silent one.
 */
import { lookup } from 'node:dns/promises';
import { type AddressInfo, createServer, isIPv6, type Server, type Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const EVERY_ADDRESS = '0.0.0.0'; // INADDR_ANY, see ip(7)
const BACKLOG = 1; // connections that may wait for accept(); Linux lets one more wait, see listen(2)
const LINE_SIZE = 1024; // the most bytes that one printed line shows, as if recv(1024) had returned them

/** The server, step by step. Each comment names a call of Python's socket module. main() prints the last line. */
async function serve(host: string, address: string, port: number): Promise<void> {
  const server = await listen(host, address, port); // socket(), bind(), listen()
  console.log(`Server started on ${host}, listening on TCP port ${portOf(server)}`);
  const connection = await accept(server); // accept()
  console.log(`Incoming connection from ${peerOf(connection)}...`);
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true }); // a byte order mark is printed like any character
  for await (const received of receive(connection)) { // recv(), until EOF
    await print(linesOf(received, decoder)); // decode(), print()
    await sendAll(connection, received); // sendall()
  }
  await print(lineOf(decoder.decode())); // a character that is still incomplete
  await close(connection); // shutdown(), close()
}

/** Serves until the client closes or a signal comes. Whichever is first, it prints the last line, once. */
async function main(host: string, port: number): Promise<void> {
  const address = await addressOf(host, port);
  const signal = await Promise.race([serve(host, address, port), untilSignal()]);
  await print('Server is shutting down. Bye!\n');
  if (signal) process.exit(); // which closes the sockets
}

/** gethostbyname(): the IPv4 address of a name, as AF_INET asks; an address stays as it is. Throws if there is none. */
async function addressOf(host: string, port: number): Promise<string> {
  try {
    return (await lookup(host, { family: 4 })).address;
  } catch (error) {
    throw cannotListen(host, port, error as NodeJS.ErrnoException);
  }
}

/** socket(AF_INET, SOCK_STREAM), bind(), listen(). Throws if one fails, for instance with EADDRINUSE, see bind(2). */
function listen(host: string, address: string, port: number): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer({ allowHalfOpen: true }); // after the client's FIN we still send, then close
    server.once('error', (error) => reject(cannotListen(host, port, error)));
    server.listen({ host: address, port, backlog: BACKLOG }, () => {
      server.removeAllListeners('error'); // from now on, an error is not one of listen()
      resolve(server);
    });
  });
}

/** The fault of a server that cannot listen, in words. */
function cannotListen(host: string, port: number, { code }: NodeJS.ErrnoException): Error {
  return new Error(`cannot listen on ${host} port ${port} (${code})`);
}

/** accept(): resolves to a new socket for one client. The listening socket is no longer needed then, and closes. */
function accept(server: Server): Promise<Socket> {
  return new Promise((resolve) => {
    server.on('connection', (connection) => {
      server.close(); // now, before Node accepts another: a client that waits in the backlog gets an RST
      // A connection can break at any time, even while we wait for stdout. Then receive(), sendAll(), close() end.
      connection.on('error', ({ code }: NodeJS.ErrnoException) => report(`connection lost (${code})`, 1));
      resolve(connection);
    });
  });
}

/** recv(): yields the bytes that have come, each time that some have, until EOF or until the connection is lost. */
async function* receive(connection: Socket): AsyncGenerator<Buffer> {
  try {
    yield* connection.iterator({ destroyOnReturn: false }); // at EOF the socket stays open, for close()
  } catch {} // the connection is lost: the listener in accept() reports it
}

/** print(): resolves when stdout has taken the lines, or has failed. A slow reader of stdout holds the client back. */
function print(lines: string): Promise<void> {
  return new Promise((resolve) => process.stdout.write(lines, () => resolve()));
}

/** sendall(): resolves when the system has taken the bytes, or the connection is lost. A slow client holds us back. */
function sendAll(connection: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => connection.write(bytes, () => resolve()));
}

/** shutdown(), which sends our FIN after the last bytes, and close(). Resolves when the connection is closed. */
function close(connection: Socket): Promise<void> {
  return new Promise((resolve) => {
    if (connection.closed) return resolve(); // it was lost
    connection.on('close', () => resolve());
    connection.end();
  });
}

/** The lines that show what was received, one for each 1,024 bytes. The decoder keeps an incomplete character. */
function linesOf(received: Buffer, decoder: InstanceType<typeof TextDecoder>): string {
  let lines = '';
  for (let start = 0; start < received.length; start += LINE_SIZE) {
    lines += lineOf(decoder.decode(received.subarray(start, start + LINE_SIZE), { stream: true }));
  }
  return lines;
}

/** The line that shows the text. No text, no line: the bytes were the start of a character. */
function lineOf(text: string): string {
  return text === '' ? '' : `Received following data: ${visible(text)}\n`;
}

/** Escapes control characters except tab and newline, as \x1b: printed raw, they could control the terminal. */
function visible(text: string): string {
  const escape = (character: string) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, escape); // C0, DEL and C1
}

/** getsockname(): the port that the server listens on, chosen by the system if we asked for port 0. */
function portOf(server: Server): number {
  return (server.address() as AddressInfo).port;
}

/** getpeername(): the client's address and port, as 127.0.0.1:58666 or [::1]:58666; unknown if it has reset already. */
function peerOf({ remoteAddress, remotePort }: Socket): string {
  if (remoteAddress === undefined) return 'an unknown address';
  return isIPv6(remoteAddress) ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`;
}

/** Resolves at SIGINT (Ctrl-C) or SIGTERM (kill). The process then ends within 1 s, even if nobody reads stdout. */
function untilSignal(): Promise<string> {
  return new Promise((resolve) => {
    const stop = (signal: string) => {
      setTimeout(() => process.exit(), 1000);
      resolve(signal);
    };
    process.on('SIGINT', stop);
    process.on('SIGTERM', stop);
  });
}

const USAGE = 'Usage: npx ts-node server.ts [host] [port]';
const HELP = `${USAGE}

Echoes what one TCP client sends, then ends.

  host        IPv4 address, IPv6 address or name (looked up as IPv4) to
              listen on; '' for every IPv4 address (default: ${HOST})
  port        0 to 65535; 0 lets the system choose (default: ${PORT})
  -h, --help  show this help`;

/** Does what the arguments ask for: to serve, to show the help, or to say what is wrong with them. */
function run(args: string[]): void {
  const [host = HOST, port = String(PORT), unexpected] = args;
  const option = args.find((arg) => arg.startsWith('-'));
  if (args.includes('-h') || args.includes('--help')) console.log(HELP);
  else if (option !== undefined) report(`unknown option "${option}"`, 2);
  else if (unexpected !== undefined) report(`unexpected argument "${unexpected}"`, 2);
  else if (!/^\d{1,5}$/.test(port) || Number(port) > 65535)
    report(`port "${port}" is not a whole number from 0 to 65535`, 2);
  else main(host || EVERY_ADDRESS, Number(port)).catch(fail);
}

/** Reports the first failure of stdout; the echo goes on. EPIPE is not one: the reader has left, as head(1) does. */
function watchStdout(): void {
  process.stdout.on('error', () => {}); // without a listener it would end Node
  process.stdout.once('error', ({ code }: NodeJS.ErrnoException) => {
    if (code !== 'EPIPE') report(`cannot print (${code})`, 1);
  });
}

/** Reports a failure on stderr, and sets the exit status: 1 at run time, 2 for a usage error. */
function report(message: string, status: 1 | 2): void {
  console.error(`server.ts: ${message}`);
  if (status === 2) console.error(USAGE);
  process.exitCode = status;
}

/** Reports an exception, expected or not, and ends the process when stdout has taken what was printed before. */
function fail({ message }: Error): void {
  report(message, 1);
  process.stdout.write('', () => process.exit());
}

process.on('uncaughtException', fail); // what nobody else caught
watchStdout();
run(process.argv.slice(2));
